"""d3rlpy, timed as its users run it: ``fit`` on a dataset, on the CPU, with its own defaults.

Nothing is written or evaluated meanwhile. The first gradient steps are timed apart.
"""

from __future__ import annotations

import time

from offline_cases import UPDATES, WARM_UP, arrays
from timing import arguments, limit_threads, report


def main() -> None:
    args = arguments(__doc__, sorted(UPDATES))
    limit_threads(args.threads)

    from importlib.metadata import version

    import d3rlpy
    import torch
    from d3rlpy.algos import CQLConfig, IQLConfig, TD3PlusBCConfig
    from d3rlpy.dataset import MDPDataset
    from d3rlpy.logging import NoopAdapterFactory

    torch.set_num_threads(args.threads)
    d3rlpy.seed(args.seed)
    dataset = MDPDataset(**arrays())
    config = {"cql": CQLConfig, "iql": IQLConfig, "td3_bc": TD3PlusBCConfig}[args.case](batch_size=256)
    model = config.create(device=False)

    def fit(updates: int) -> float:
        start = time.perf_counter()
        model.fit(
            dataset,
            n_steps=updates,
            n_steps_per_epoch=updates,
            logger_adapter=NoopAdapterFactory(),
            show_progress=False,
            save_interval=10**9,
        )
        return time.perf_counter() - start

    warm_up_seconds = fit(WARM_UP)
    updates = args.total_steps or UPDATES[args.case]
    seconds = fit(updates)
    report(
        peer="d3rlpy",
        case=args.case,
        threads=args.threads,
        seed=args.seed,
        steps=updates,
        seconds=seconds,
        updates_per_second=updates / seconds,
        warm_up_seconds=warm_up_seconds,
        versions={name: version(name) for name in ("d3rlpy", "torch", "numpy")},
    )


if __name__ == "__main__":
    main()
