"""Mistakes that a person could make with a labelling project, as in ``mutations``: durable, leased, counted once."""

from __future__ import annotations

Mistakes = dict[str, tuple[str, str]]

SCHEMA: Mistakes = {
    "commits that are not synced": ("PRAGMA synchronous=FULL", "PRAGMA synchronous=NORMAL"),
    "no log before writing": ("PRAGMA journal_mode=WAL", "PRAGMA journal_mode=DELETE"),
    "the schema trusted": ('"trusted_schema=OFF", ', ""),
    "foreign ids accepted": ('"foreign_keys=ON", ', ""),
    "replacing deletes": (', "recursive_triggers=ON"', ""),
    "objects of a hostile file accepted": ("_objects(db) ^ _objects(ours)", "set()"),
    "what is missing accepted": ("_objects(db) ^ _objects(ours)", "_objects(db) - _objects(ours)"),
    "what is too much accepted": ("_objects(db) ^ _objects(ours)", "_objects(ours) - _objects(db)"),
    "only names compared": (
        "(str(kind), str(name), None if sql is None else str(sql))",
        "(str(kind), str(name), None)",
    ),
    "another program's database accepted": ("if application != APPLICATION:", "if False:"),
    "newer versions read": ("if version > len(migrations):", "if False:"),
    "damage not looked for": ("if path.stat().st_size < CHECKED_BYTES:", "if False:"),
    "an empty file is a project": ("if empty and not create:", "if False:"),
    "judgements can be changed": (
        "CREATE TRIGGER judgement_unchanged BEFORE UPDATE ON judgement\n",
        "CREATE TRIGGER judgement_unchanged BEFORE UPDATE ON judgement WHEN 0\n",
    ),
    "judgements can be deleted": (
        "CREATE TRIGGER judgement_kept BEFORE DELETE ON judgement\n",
        "CREATE TRIGGER judgement_kept BEFORE DELETE ON judgement WHEN 0\n",
    ),
    "one uuid for two judgements": ("uuid TEXT NOT NULL UNIQUE", "uuid TEXT NOT NULL"),
    "a failed migration stays half": ('db.execute("ROLLBACK")', 'db.execute("COMMIT")'),
    "migrations applied from the first": ("for script in migrations[_version(db) :]:", "for script in migrations:"),
    "the version not written": ('db.execute(f"PRAGMA user_version={len(migrations)}")', "pass"),
}

STORE: Mistakes = {
    "what fails is committed": ('self._db.execute("ROLLBACK")', 'self._db.execute("COMMIT")'),
    "items stay closed": (
        'db.execute(f"UPDATE item SET open = ({LABELS_OF_ITEM}) < ?", (settings.labels_per_item,))',
        "pass",
    ),
    "repeats are labels": ("WHERE a.item = item.id AND a.repeat = 0 AND", "WHERE a.item = item.id AND"),
    "skips are labels": (
        "AND a.repeat = 0 AND a.judged IN ('prefer', 'tie', 'rank')",
        "AND a.repeat = 0 AND a.judged IS NOT NULL",
    ),
    "the same pair twice": (
        "asked = [tuple(sorted(group)) for group in groups]",
        "asked = [tuple(group) for group in groups]",
    ),
    "one thing compared with itself": ("if len(set(members)) < len(members):", "if False:"),
    "answers to different prompts compared": ("if len(set(rows)) > 1:", "if False:"),
    "absent responses compared": ("if len(rows) < len(members):", "if False:"),
    "another text under the same settings": ("if row[1] != content:", "if False:"),
    "retractions are judgements": ("WHERE j.kind <> 'retract' ", "WHERE 1 "),
    "what was retracted stands": (
        "AND NOT EXISTS (SELECT 1 FROM judgement later WHERE later.assignment = a.id AND later.id > j.id) ",
        "",
    ),
    "text that is no JSON accepted": (
        "except (ValueError, TypeError, RecursionError) as error:",
        "except TypeError as error:",
    ),
    "ids that are texts": ("not all(type(x) is int for x in cast(list[Any], found))", "False"),
}

LABELLING: Mistakes = {
    "others' answers do not count": ("AND labeller <> ? AND repeat = 0", "AND labeller = ? AND repeat = 0"),
    "leases that never end": ("(judged IS NULL AND lease > ?)", "judged IS NULL"),
    "leases that hold nothing": ("(a.judged IS NULL AND a.lease > :now)", "0"),
    "a lease is not renewed": ("(now + settings.lease_seconds, found)", "(now, found)"),
    "a labeller sees an item twice": ("WHERE a.item = i.id AND a.labeller = :labeller AND a.repeat = 0", "WHERE 0"),
    "lower priorities first": ("ORDER BY i.priority DESC", "ORDER BY i.priority"),
    "sides as they were made": ("    rng.shuffle(shown)\n", ""),
    "repeats with the same sides": ("tuple(reversed(project.ids(shown)))", "project.ids(shown)"),
    "repeats at once": ("(labeller, REPEAT_AFTER),", "(labeller, 0),"),
    "repeats again and again": ("if item not in done]", "]"),
    "repeats always": ("rng.random() < settings.repeat_share", "True"),
    "repeats never": ("rng.random() < settings.repeat_share", "False"),
    "a retry is another judgement": ("        if _was_there(db, uuid, row):\n            return False\n", ""),
    "a uuid may be used again": ("if tuple(found) != row:", "if False:"),
    "judged twice": ("if judged is not None:", "if False:"),
    "judged for somebody else": ("if row[0] != labeller:", "if False:"),
    "times in any order": ("0 <= began <= ended)", "0 <= began)"),
    "times that are no numbers": ("math.isfinite(began) and math.isfinite(ended) and", ""),
    "rankings of anything": ("if tuple(sorted(ranking)) != expected:", "if False:"),
    "two are ranked": ('or (kind == "rank" and len(shown) == 2)', ""),
    "four are preferred": ('(kind == "prefer" and len(shown) != 2) or', ""),
    "any kind": ('if kind not in ("prefer", "tie", "skip", "rank"):', "if False:"),
    "items are not closed": (
        "(kind, assignment))\n        _count_labels(project, db, assignment)",
        "(kind, assignment))",
    ),
    "undo takes the first": (
        "AND a.judged IS NOT NULL ORDER BY j.id DESC LIMIT 1",
        "AND a.judged IS NOT NULL ORDER BY j.id LIMIT 1",
    ),
    "undo takes back what others said": (
        '"WHERE a.labeller = ? AND a.judged IS NOT NULL ORDER',
        "\"WHERE ? <> '' AND a.judged IS NOT NULL ORDER",
    ),
    "a retried undo takes back more": ("        if before is not None:\n", "        if False:\n"),
    "undo of another uuid": ('if before[1] != "retract" or before[2] != labeller:', "if before[2] != labeller:"),
    "any text is a uuid": ("if not _UUID.fullmatch(uuid):", "if False:"),
}

EXCHANGE: Mistakes = {
    "repetitions count": ("or judgement.repeat or judgement.kind not in", "or judgement.kind not in"),
    "ties prefer something": ('judgement.kind not in ("prefer", "rank")', 'judgement.kind == "skip"'),
    "rankings leave pairs out": (
        "itertools.combinations(judgement.ranking, 2)",
        "itertools.pairwise(judgement.ranking)",
    ),
    "worse for better": (
        '"chosen": turn(better.text), "rejected": turn(worse.text)',
        '"chosen": turn(worse.text), "rejected": turn(better.text)',
    ),
    "sources exchanged": ('"chosen_source": better.source', '"chosen_source": worse.source'),
    "texts for conversations": ("return text if isinstance(prompt.content, str) else", "return text if True else"),
    "equal responses preferred": ("if len(set(texts)) < len(texts):", "if False:"),
    "judged again by the same": (
        'AND judged IS NOT NULL", item, labeller):\n        return True',
        'AND judged IS NOT NULL", item, labeller):\n        pass',
    ),
    "the scale upside down": ('else "a" if scale < 0 else "b"', 'else "b" if scale < 0 else "a"'),
    "ranks upside down": ("key=lambda place: ranks[place]", "key=lambda place: -ranks[place]"),
    "labels counted from 0": ("str(i + 1), LETTERS[i]", "str(i), LETTERS[i]"),
    "an order with ties kept": ("    if len(set(ranks.values())) < len(names):\n        return None\n", ""),
    "any conversation's beginning": ("turns[0][:-1] != turns[1][:-1]", "False"),
}

LIVE: Mistakes = {
    "the others win": ("1 if j.ranking[0] == pair[0] else -1", "-1 if j.ranking[0] == pair[0] else 1"),
    "skips are ties": ('for j in said if j.kind != "skip"]', "for j in said]"),
    "certificates are texts": ("named[name] = Path(named[name])", "pass"),
    "the project is sought where the run resumes": (
        'people["project"] = str(Path(given.labeller.project).expanduser().resolve())',
        'people["project"] = "p.db"',
    ),
}

FILM: Mistakes = {
    "over the end of an episode": ("if not result.valid[i] or (done[i] and len(roll) < self.steps)", "if False"),
    "a row late": ("self.kept[self._row - self.steps, i]", "self.kept[self._row - self.steps + 1, i]"),
    "always the first environments": (
        "torch.randperm(self.num_envs, generator=generator)[:count]",
        "torch.arange(self.num_envs)[:count]",
    ),
    "never enough": ("if len(self.kept) >= self._wanted:", "if False:"),
}

JUDGED: Mistakes = {
    "the worse one first": ("FIRST if better < worse else SECOND", "FIRST if better > worse else SECOND"),
    "the last word of a labeller": (
        "said.setdefault((judgement.labeller, pair), answer)",
        "said[judgement.labeller, pair] = answer",
    ),
    "repeats in the table": (
        "        if not judgement.repeat:\n            for pair",
        "        if True:\n            for pair",
    ),
    "the right side is the left one": (
        "judgement.shown.index(better) < judgement.shown.index(worse)",
        "judgement.shown.index(better) > judgement.shown.index(worse)",
    ),
    "ties on the left": ("if answer != TIE and", "if"),
    "first answers again": ("        if judgement.repeat\n", ""),
}

PROGRESS: Mistakes = {
    "the first answers are the same": ("first == again for", "first == first for"),
    "skips are ties": ('sum(j.kind == "tie" for', 'sum(j.kind in ("tie", "skip") for'),
    "the longest time": ("seconds=median(", "seconds=max("),
}
