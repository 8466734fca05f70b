"""Mistakes that a person could make with language models, as in ``mutations``: data, batches, samples, comparisons."""

from __future__ import annotations

Mistakes = dict[str, tuple[str, str]]

DATA: Mistakes = {
    "no end token": (
        "return response if response[-1] in self.end_tokens else (*response, self.end_token)",
        "return response",
    ),
    "a second end token": (
        "return response if response[-1] in self.end_tokens else (*response, self.end_token)",
        "return (*response, self.end_token)",
    ),
    "an end token inside a response accepted": ("enumerate(response[:-1])", "enumerate(response[:0])"),
    "cut responses get an end": (
        "Example(whole.tokens[:limit], whole.response[:limit])",
        "Example((*whole.tokens[: limit - 1], whole.tokens[-1]), whole.response[:limit])",
    ),
    "a sequence as long as the limit is cut": (
        "if len(whole.tokens) > limit:",
        "if len(whole.tokens) >= limit:",
    ),
    "what is not learned counts as truncated": ("report.truncated += lost", "report.truncated += 1"),
    "no room for the response": ("_limit(lm, max_length) - new_tokens", "_limit(lm, max_length)"),
    "a prompt without its response kept": ("if not any(whole.response):", "if False:"),
    "the beginning twice": (
        "tokens = tokens if tokens[:1] == self.bos else (*self.bos, *tokens)",
        "tokens = (*self.bos, *tokens)",
    ),
    "no beginning": (
        "tokens = tokens if tokens[:1] == self.bos else (*self.bos, *tokens)",
        "tokens = tokens[len(self.bos) :] if tokens[:1] == self.bos else tokens",
    ),
    "merged tokens cut where the prompt ended": (
        "response = self.encode(completion)",
        "response = joined[len(first) :]",
    ),
    "merges not counted": (
        "report.merges += 1\n            response = self.encode(completion)",
        "response = self.encode(completion)",
    ),
    "merges in conversations not counted": (
        "            report.merges += 1\n        counts",
        "            pass\n        counts",
    ),
    "another text accepted": (
        "if self.tokenizer.decode([*first, *response]) != self.tokenizer.decode(list(joined)):",
        "if False:",
    ),
    "every response by itself": ("if joined[: len(first)] == first:", "if False:"),
    "what follows an end is learned": ("stop = after if end is None else end + 1", "stop = after"),
    "the end is not learned": ("stop = after if end is None else end + 1", "stop = after if end is None else end"),
    "only the last turn is learned": (
        'if m["role"] == "assistant" and i >= first]',
        'if m["role"] == "assistant" and i >= first][-1:]',
    ),
    "turns of the prompt are learned": (
        'if m["role"] == "assistant" and i >= first]',
        'if m["role"] == "assistant"]',
    ),
    "the role is learned": (
        "self.rendered(messages[:i], answer=True, tools=tools)",
        "self.rendered(messages[:i], tools=tools)",
    ),
    "control tokens in messages accepted": (
        "found = next((token for token in self.control if any(token in text for text in said)), None)",
        "found = None",
    ),
    "a prompt that is no prefix accepted": ("if whole.startswith(part):", "if True:"),
    "the first token of a text learned": (
        "mask = (False,) + (True,) * len(tokens) if self.bos else (False,) + (True,) * (len(tokens) - 1)",
        "mask = (True,) * (len(tokens) + len(self.bos))",
    ),
    "room without the prompt": ("room = limit - len(prompt)", "room = limit"),
    "pairs cut down to the same kept": ("if room < 1 or chosen[:room] == rejected[:room]:", "if room < 1:"),
    "equal pairs accepted": ("if chosen == rejected:", "if False:"),
    "chosen and rejected exchanged": (
        "Pair(prompt, chosen[:room], rejected[:room])",
        "Pair(prompt, rejected[:room], chosen[:room])",
    ),
    "answers to different prompts accepted": ("if one[:-1] != other[:-1]:", "if False:"),
    "long prompts kept": ("if len(tokens) > limit:", "if False:"),
    "rows run together in the fingerprint": ('digest.update(b"|")', "pass"),
    "empty responses accepted": ("if not completion.strip():", "if False:"),
}

BATCHING: Mistakes = {
    "padding attended": ("attention[i, :n] = True", "attention[i] = True"),
    "the prompt learned": ("response[i, :n] = torch.tensor(example.response)", "response[i, :n] = True"),
    "a first token learned": ("    response[:, 0] = False\n", ""),
    "packed positions run on": (
        "position_ids[i, start:stop] = torch.arange(stop - start)",
        "position_ids[i, start:stop] = torch.arange(start, stop)",
    ),
    "a packed first token predicted from the sequence before": ("            response[i, start] = False\n", ""),
    "an empty end belongs to the last sequence": (
        "position_ids[i, start:] = torch.arange(length - start)",
        "position_ids[i, start:] = torch.arange(start, length)",
    ),
    "packed prompts learned": (
        "response[i, start:stop] = torch.tensor(example.response)",
        "response[i, start:stop] = True",
    ),
    "prompts of pairs scored": ("(False,) * len(p.prompt) + (True,)", "(True,) * len(p.prompt) + (True,)"),
    "sides of different lengths": (
        "for side in sides for e in side)",
        "for side in sides[:1] for e in side)",
    ),
    "a leak tolerated": ("tolerance = 1e-3 if", "tolerance = 1e3 if"),
    "the same order every epoch": ("default_rng([seed, epoch])", "default_rng([seed])"),
    "what does not fill a batch dropped": (
        "for i in range(0, len(order), batch_size)]\n    return",
        "for i in range(0, len(order) - batch_size + 1, batch_size)]\n    return",
    ),
    "sorted over the whole epoch": ("stretch = batch_size * GROUPED_BATCHES", "stretch = len(order)"),
    "short batches first": (
        "return [batches[i] for i in rng.permutation(len(batches))] if group else batches",
        "return batches",
    ),
    "rows overfull by a token": (
        "bisect.bisect_left(free, (length, -1))",
        "bisect.bisect_left(free, (length - 1, -1))",
    ),
    "the shortest packed first": ("(-lengths[i], i)", "(lengths[i], i)"),
    "the worst fit": ("room, row = free.pop(place)", "room, row = free.pop()"),
}

GENERATION: Mistakes = {
    "models that forget are sampled from": ("if not lm.remembers:", "if False:"),
    "logits that are no numbers drawn from": ("if bool(torch.isnan(log_pi).any()):", "if False:"),
    "logits of autocast": ("return logits_of(lm)(hidden)", "return lm.head(hidden).float()"),
    "one uniform for all steps": ("uniforms[row, step])", "uniforms[row, 0])"),
    "uniforms of other rows when some have ended": ("uniforms[row, step])", "uniforms[: len(row), step])"),
    "uniforms in the order of length": ("sampling, uniforms[rows], on", "sampling, uniforms[start:][: len(rows)], on"),
    "answers in the order of length": (
        "for i, answer in zip(rows, answers, strict=True):\n                out[i] = answer",
        "for i, answer in enumerate(answers, start=start):\n                out[i] = answer",
    ),
    "impossible tokens drawn by a uniform of 0": ("level, right=True)", "level, right=False)"),
    "a total that is not divided out": (
        "torch.minimum(uniform.unsqueeze(1) * total,",
        "torch.minimum(uniform.unsqueeze(1),",
    ),
    "nothing left out": ("_restrict(log_pi.double().exp(), sampling).cumsum(-1)", "log_pi.double().exp().cumsum(-1)"),
    "one token too many of the top": ("keep[:, sampling.top_k :] = False", "keep[:, sampling.top_k + 1 :] = False"),
    "the token that fills the nucleus left out": (
        "ordered.cumsum(-1) - ordered < sampling.top_p",
        "ordered.cumsum(-1) < sampling.top_p",
    ),
    "the least probable kept": ("descending=True, stable=True", "descending=False, stable=True"),
    "the temperature forgotten": ("logits / (sampling.temperature or 1.0)", "logits"),
    "the temperature multiplied": ("logits / (sampling.temperature or 1.0)", "logits * (sampling.temperature or 1.0)"),
    "padding attended": ("mask[i, width - len(prompt) :] = True", "mask[i] = True"),
    "positions count padding": (
        "position_ids = (mask.cumsum(1) - 1).clamp(min=0)",
        "position_ids = torch.ones_like(mask).cumsum(1) - 1",
    ),
    "positions stand still": ("position_ids = position_ids[:, -1:] + 1", "position_ids = position_ids[:, -1:]"),
    "the first end token alone ends": ("torch.tensor(lm.end_tokens, device=device)", "torch.tensor(lm.end_tokens[:1])"),
    "cut off for ended": ("ended[i] = not goes_on", "ended[i] = True"),
    "the end's log-probability left out": (
        "log_probs[i].append(value)",
        "log_probs[i] += [value] * goes_on",
    ),
    "another row's cache": ("cache.batch_select_indices(keep)", "cache.batch_select_indices(keep.flip(0))"),
    "dropout left on": (
        "    with without_dropout(lm):\n        for start",
        "    with torch.no_grad():\n        for start",
    ),
    "the context not looked at": ("longest + sampling.max_new_tokens > lm.context", "False"),
    "the end token in the text": ("response.tokens[:-1] if response.ended else response.tokens", "response.tokens"),
    "the last token of what was cut off missing": (
        "response.tokens[:-1] if response.ended else response.tokens",
        "response.tokens[:-1]",
    ),
}

MODELS: Mistakes = {
    "the generation config's end tokens alone": (
        "(int(token) for token in listed), *own]",
        "(int(token) for token in listed)]",
    ),
    "the tokenizer's end token alone": ("[*(int(token) for token in listed), *own]", "own"),
    "a padding row that never learns": ("lm.network.get_input_embeddings().padding_idx = None", "pass"),
    "pickles read": ('"use_safetensors": True, "trust', '"use_safetensors": None, "trust'),
    "capped logits taken for plain ones": ("torch.allclose(whole, parts, rtol=1e-4, atol=1e-2)", "True"),
    "a cap looked for among small logits": ("lambda module, given, logits: factor * logits", "lambda *_: None"),
    "models that forget taken for those that do not": (
        "return float((parts - whole).norm()) <= 0.1",
        "return True or float((parts - whole).norm()) <= 0.1",
    ),
    "adapters put in twice": ('if hasattr(lm.model, "peft_config"):', "if False:"),
    "a tokenizer of another model accepted": ("if len(tokenizer) > lm.vocabulary:", "if False:"),
    "weights that are missing drawn at random": ('refuse_missing(f"the model {source}", loading)', "pass"),
    "a cache where sequences are packed": (
        "position_ids=batch.position_ids, use_cache=False",
        "position_ids=batch.position_ids, use_cache=True",
    ),
}

REFERENCE: Mistakes = {
    "the reference learns too": ("lm if adapters_are_fresh else frozen_copy(lm)", "lm"),
    "adapters left on": (
        "reference(self.lm) if self.switches else nullcontext():\n            return token",
        "nullcontext():\n            return token",
    ),
    "adapters left on for pairs": (
        "reference(self.lm) if self.switches else nullcontext():\n            return pair",
        "nullcontext():\n            return pair",
    ),
    "dropout left on": (
        "with without_dropout(self.lm), reference(self.lm) if self.switches else nullcontext():\n"
        "            return token",
        "with reference(self.lm) if self.switches else nullcontext():\n            return token",
    ),
    "the temperature forgotten": (
        "token_log_probs(self.lm, batch, temperature=temperature)",
        "token_log_probs(self.lm, batch)",
    ),
    "a key without the weights": ("digest.update(weights_fingerprint(weights).encode())", "pass"),
    "a key without the settings": (
        "digest.update(settings_fingerprint(lm, adapters=not adapters_are_fresh).encode())",
        "pass",
    ),
    "a key with fresh adapters": ("if name not in left_out}", "if True}"),
    "a key without the template": ("digest.update(str(tokenizer.chat_template).encode())", "pass"),
    "a key without the data": ('f"|{data_fingerprint}|{precision}', 'f"|{precision}'),
    "a key without the temperature": ("|{temperature!r}|", "|"),
    "a key without the precision": ("|{precision}|", "|"),
    "a key without the path": ("|{share_prompts}|", "|"),
    "other shapes taken from the cache": ("tuple(x.shape) != s for x, s in", "False for x, s in"),
}

FINGERPRINTS: Mistakes = {
    "the weights left out": (
        "digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)",
        "pass",
    ),
    "the adapters' settings left out": ("if adapters and lm.has_adapters:", "if False:"),
    "bookkeeping counted": ("if name not in BOOKKEEPING and not name.startswith", "if not name.startswith"),
    "sets in any order": ("sorted(map(repr, ", "list(map(repr, "),
    "addresses counted": ('re.sub(r" at 0x[0-9a-f]+", "", repr(value))', "repr(value)"),
}

SFT: Mistakes = {
    "padding and prompts counted": ("return int(batch.response_mask.sum())", "return int(batch.attended.sum())"),
    "dropout left off": ("self.lm.model.train()", "pass"),
    "evaluation per sequence": ("/ processes.total(count)", "/ processes.total(len(self.eval_data))"),
    "evaluation with dropout": ("with without_dropout(self.lm), self.autocast():", "with self.autocast():"),
    "packing not tried on the model": ("check_isolation(self.lm)", "pass"),
}

REWARDS: Mistakes = {
    "scores in the order of length": (
        "out[rows] = model.scores(batch)",
        "out[start : start + len(rows)] = model.scores(batch)",
    ),
    "a model of other tokens accepted": ("if model.lm.tokenizer.get_vocab() != lm.tokenizer.get_vocab():", "if False:"),
    "rewards that are no numbers accepted": ("if bad is not None:", "if False:"),
    "another template taken for the same": (
        "if reward.lm.tokenizer.chat_template == lm.tokenizer.chat_template:",
        "if True:",
    ),
    "too few rewards accepted": ("if len(found) != count:", "if False:"),
}

DIVERGENCE: Mistakes = {
    "the other KL": ("new.kl(old)", "old.kl(new)"),
    "the KL at temperature 1": ("[read.to_logits(x) / temperature for", "[read.to_logits(x) for"),
    "k1 of the other sign": (
        "k1_estimate(new.log_prob(target), old.log_prob(target))",
        "k1_estimate(old.log_prob(target), new.log_prob(target))",
    ),
    "the KL a token late": ("answered = batch.response_mask[:, 1:]", "answered = batch.response_mask[:, :-1]"),
    "the KL put a token early": ("nn.functional.pad(answered, (1, 0))", "nn.functional.pad(answered, (0, 1))"),
}

MEASURES: Mistakes = {
    "the variance over n": ("/ (n - 1) / n)", "/ n / n)"),
    "the deviation of one for that of the mean": ("/ (n - 1) / n)", "/ (n - 1))"),
    "an interval of 90 %": ("Z = 1.959963984540054", "Z = 1.6448536269514722"),
    "a normal interval for few values": ("half = t_quantile(n - 1) * math.sqrt(", "half = Z * math.sqrt("),
    "degrees of freedom not less one": ("half = t_quantile(n - 1)", "half = t_quantile(n)"),
    "odd degrees of freedom taken for even": ("odd = freedom % 2", "odd = 0"),
    "Wilson's centre not moved": ("centre = p + z2 / (2 * n)", "centre = p"),
    "Wilson's width of a normal interval": (" + z2 / (4 * n * n))", ")"),
    "Wilson not shrunk": ("else (centre + half) / (1 + z2 / n)", "else centre + half"),
    "ties lost": ("share_interval(wins + 0.5 * ties,", "share_interval(wins,"),
    "ties won": ("share_interval(wins + 0.5 * ties,", "share_interval(wins + ties,"),
    "losses counted": ("wins = sum(a > b for", "wins = sum(a < b for"),
    "the longer text not cut": ("(x[: len(y)], y[: len(x)])", "(x[: len(y)], y)"),
    "the other text not cut": ("(x[: len(y)], y[: len(x)])", "(x, y[: len(x)])"),
    "the last stretch left out": ("range(len(words) - n + 1)]", "range(len(words) - n)]"),
    "different ones per text": (
        "return len(set(stretches)) / len(stretches)",
        "return len(set(stretches)) / len(texts)",
    ),
}

TRIAL: Mistakes = {
    "the run's own pairs not tried": ("(pairs and not _reads_alike(lm, pairs))", "False"),
    "no short pairs tried": ("if not _reads_alike(lm, short) or", "if False or"),
    "the gradient not tried": ("if not _learns_alike(lm, short):", "if False:"),
    "the trial in half precision": (
        "with without_dropout(lm), torch.autocast(lm.device.type, enabled=False):\n            if not",
        "with without_dropout(lm):\n            if not",
    ),
    "the trial with dropout": (
        "with without_dropout(lm), torch.autocast(lm.device.type, enabled=False):\n            if not",
        "with torch.autocast(lm.device.type, enabled=False):\n            if not",
    ),
    "an error of the trial let out": ('return f"it cannot go on from a cached prompt', 'raise\n        return f"it'),
    "gradient checkpointing overlooked": ('getattr(module, "gradient_checkpointing", False)', "False"),
    "partial caches overlooked": ("type(layer) is not DynamicLayer", "False"),
    "a hook left behind": ("        hook.remove()", "        pass"),
    "values hardly compared": ("(1e-4, 1e-3) if _is_exact(lm)", "(1e-1, 1.0) if _is_exact(lm)"),
}

FAILING: Mistakes = {
    "who fails keeps it to itself": ("gather(_Failure(kind, said))", "pass"),
    "who is told tells again": ("and not isinstance(error.__cause__, _Elsewhere):", "and True:"),
    "what others came to not heard": ("if isinstance(other, _Failure):", "if False:"),
    "who is done does not ask": ("        raise\n    gather(None)", "        raise"),
    "misuse for a failure": ("UsageError if isinstance(error, UsageError) else RunError", "RunError"),
    "told in a model in parts": ("if tells and world_size() > 1", "if world_size() > 1"),
    "a second signal remembered": ("raise SystemExit(128 + number)", "pass"),
    "a signal passed on taken for a second": ("time.monotonic() - when > AT_ONCE", "time.monotonic() - when > -1.0"),
    "other models accepted": (
        'check_same([(tuple(x.shape), str(x.dtype)) for x in (*module.parameters(), *module.buffers())], "the model")',
        "pass",
    ),
}

COMPARISON: Mistakes = {
    "other uniforms for the two": (
        "generate(side.lm, tokens, sampling, uniforms,",
        "generate(side.lm, tokens, sampling, draw_uniforms(len(tokens), sampling, generator),",
    ),
    "the KL on the other's samples": ("other, drawn[i], sampling", "other, drawn[1 - i], sampling"),
    "the win rate of the other": ("else win_rate(*rewards)", "else win_rate(*reversed(rewards))"),
    "the difference of the other sign": ("mean_interval([x - y for", "mean_interval([y - x for"),
    "texts retold without their end": ("*((judge.lm.end_token,) if r.ended else ())", "*()"),
    "diversity of all that was said": ("cut = equally_long(*texts)", "cut = texts"),
    "truncated distributions taken for the policy": ("if sampling.top_k or sampling.top_p < 1.0:", "if False:"),
    "greedy answers taken for samples": ("if sampling.temperature == 0:", "if False:"),
    "prompts of other tokens accepted": ("if any(p.tokens != q.tokens for", "if any(False for"),
    "a share of answers cut off": (
        "share_interval(sum(response.ended for",
        "share_interval(sum(not response.ended for",
    ),
}
