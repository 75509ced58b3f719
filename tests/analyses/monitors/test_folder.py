"""Monitors as folders: what is read means what was written, and what is bad is refused before long work."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deltasae_ray.analyses.monitors.folder import (
    PROBE,
    REPAIR,
    TEXTS,
    YAML,
    read_monitor,
    read_texts,
    write_monitor,
)
from deltasae_ray.analyses.monitors.kept import cut_notes, keep_monitors, open_monitors
from deltasae_ray.analyses.monitors.monitor import Monitor, Repair, fit_repair
from deltasae_ray.errors import DeltaSaeError, MonitorError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.storage import Storage

D, AT = 8, Hookpoint(1)
H = torch.randn(20, D, generator=torch.Generator().manual_seed(0))


def probe(folder: Path, text: str = "hookpoint: 1\nreads: mean\n", **tensors: torch.Tensor) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / YAML).write_text(text)
    save_file({"weight": torch.arange(1.0, D + 1)} | tensors, folder / PROBE)
    return folder


def dictionary(folder: Path, latents: str = "[1, 3]", hookpoint: str = "blocks.1.hook_resid_post") -> Path:
    rows = torch.nn.functional.normalize(
        torch.randn(12, D, generator=torch.Generator().manual_seed(1)), dim=1
    )
    ones = torch.ones(12)
    made = Dictionary(
        rows.T.contiguous(), rows, 0 * ones, torch.zeros(D), "topk", 4, ones, ones, {"hookpoint": hookpoint}
    )
    made.save(folder)
    (folder / YAML).write_text(f"hookpoint: 1\nreads: max\nlatents: {latents}\n")
    return folder


def test_a_probe_scores_standardised_activations_and_each_reading_takes_tokens_together(
    tmp_path: Path,
) -> None:
    mean, scale = torch.full((D,), 0.5), torch.linspace(0.5, 2, D)
    wanted = ((H - mean) / scale) @ torch.arange(1.0, D + 1) + 0.25
    for reads, score in {
        "last": wanted[-1:], "mean": wanted.mean()[None], "max": wanted.max()[None], "each": wanted,
    }.items():  # fmt: skip
        text = f"hookpoint: model.layers.1\nreads: {reads}\n"
        folder = probe(
            tmp_path / reads,
            text,
            mean=mean,
            scale=scale,
            bias=torch.tensor([0.25]),
            threshold=torch.tensor(3.0),
        )
        found = read_monitor(folder)
        assert (found.name, found.hookpoint, found.threshold) == (reads, AT, 3.0)
        assert torch.allclose(found.scores(H), score, atol=1e-4)


def test_chosen_latents_of_a_dictionary_are_a_monitor(tmp_path: Path) -> None:
    found = read_monitor(dictionary(tmp_path / "latents"))
    codes = Dictionary.load(tmp_path / "latents").encode(H)
    assert torch.equal(found.scores(H), (codes[:, 1] + codes[:, 3]).max()[None])


@pytest.mark.parametrize("make", [probe, dictionary])
def test_a_repaired_monitor_is_written_as_a_folder_of_the_same_form(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    repair = Repair(
        torch.eye(D) + 0.1 * torch.randn(D, D, generator=torch.Generator().manual_seed(2)), torch.ones(D)
    )
    before = read_monitor(make(tmp_path / "own"))
    write_monitor(before.repaired(repair), tmp_path / "again" / "own")
    again = read_monitor(tmp_path / "again" / "own")
    assert torch.allclose(again.scores(H), before.scores(repair(H)), atol=1e-4)


def test_a_repair_finds_an_affine_map_and_leaves_alone_what_did_not_change() -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(400, D, generator=generator)
    turn = torch.eye(D)
    turn[0, 0] = -1
    adapted, held = base @ turn + torch.arange(D), torch.arange(400) % 4 == 3
    assert torch.allclose(fit_repair(adapted, base, held)(adapted), base, atol=1e-3)
    assert torch.allclose(fit_repair(base, base, held)(base), base, atol=1e-5)


def nan(folder: Path) -> None:
    probe(folder, bias=torch.tensor(float("nan")))


def pickled(folder: Path) -> None:
    probe(folder)
    (folder / PROBE).unlink()
    (folder / "probe.pkl").write_bytes(pickle.dumps([1.0] * D))


def pickled_by_another_name(folder: Path) -> None:
    probe(folder)
    torch.save({"weight": torch.ones(D)}, folder / PROBE)


BAD = {
    "wide": (lambda f: probe(f, weight=torch.ones(D + 1)), "of width 9, and the base model's is 8"),
    "elsewhere": (lambda f: probe(f, "hookpoint: 2\nreads: last\n"), "add its layer to layers"),
    "foreign": (lambda f: probe(f, "hookpoint: 30\nreads: last\n"), "made for another model"),
    "site": (lambda f: probe(f, "hookpoint: blocks.1.hook_mlp_out\nreads: last\n"), "harvest.sites"),
    "nan": (nan, "bias holds NaN"),
    "pickled": (pickled, "pickles run code"),
    "disguised": (pickled_by_another_name, "pickles are not read"),
    "zero": (lambda f: probe(f, weight=torch.zeros(D)), "zero everywhere"),
    "scaleless": (lambda f: probe(f, scale=torch.zeros(D)), "scale must be above 0"),
    "shapes": (lambda f: probe(f, mean=torch.ones(3)), "mean has shape"),
    "reading": (lambda f: probe(f, "hookpoint: 1\nreads: first\n"), "must be one of last, mean, max, each"),
    "place": (lambda f: probe(f, "hookpoint: nowhere\nreads: last\n"), "no hookpoint"),
    "keys": (lambda f: probe(f, "hookpoint: 1\nread: last\n"), "and no others"),
    "limit": (lambda f: probe(f, "hookpoint: 1\nreads: last\nthreshold: .nan\n"), "finite number"),
    "number": (lambda f: dictionary(f, "[12]"), "no latent 12"),
    "none": (lambda f: dictionary(f, "[]"), "latents names those"),
    "other": (lambda f: dictionary(f, hookpoint="blocks.3.hook_resid_post"), "was made for"),
    "both": (lambda f: probe(dictionary(f)), "both"),
    "bad name!": (lambda f: probe(f), "rename it"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_monitors_are_refused_with_the_file_and_the_remedy(name: str, tmp_path: Path) -> None:
    make, said = BAD[name]
    make(tmp_path / name)
    folders = [str(probe(tmp_path / "good")), str(tmp_path / name)]
    with pytest.raises(MonitorError) as refused:
        keep_monitors(Storage(str(tmp_path / "root")), folders, D, [AT])
    assert said in str(refused.value) and name in str(refused.value)
    assert not (tmp_path / "root").exists(), "nothing is written"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"text": "a", "label": 1}', "both labels"),
        ('{"text": "a", "label": 2}', "line 1"),
        ('{"text": "a", "label": 1}\nx', "line 2"),
        ('{"text": "", "label": 1}', "line 1"),
        ('{"label": 1}', "line 1"),
        ("[1]", "line 1"),
    ],
)
def test_bad_labelled_texts_are_told_by_their_line(lines: str, said: str, tmp_path: Path) -> None:
    (probe(tmp_path / "p") / TEXTS).write_text(lines)
    with pytest.raises(MonitorError, match=said):
        keep_monitors(Storage(str(tmp_path / "root")), [str(tmp_path / "p")], D, [AT])


def test_kept_monitors_open_as_they_were_and_equal_names_are_refused(tmp_path: Path) -> None:
    first, storage = probe(tmp_path / "a" / "p"), Storage(str(tmp_path / "root"))
    (first / TEXTS).write_text("\n".join(json.dumps({"text": "word", "label": i % 2 == 0}) for i in range(4)))
    (ref,) = keep_monitors(storage, [str(first)], D, [AT])
    assert ref.texts == len(read_texts(first / TEXTS)) == 4
    opened: Monitor = open_monitors(storage, [ref])["p"]
    assert torch.equal(opened.scores(H), read_monitor(first).scores(H))
    with pytest.raises(DeltaSaeError, match="two are called 'p'"):
        keep_monitors(storage, [str(first), str(probe(tmp_path / "b" / "p"))], D, [AT])
    assert not (first / REPAIR).exists()


class Letters:
    """A tokenizer of letters."""

    bos_token_id = None

    def encode(self, text: str, **_: bool) -> list[int]:
        return [ord(letter) for letter in text]


def test_texts_that_are_longer_than_a_context_are_told_at_the_plan(tmp_path: Path) -> None:
    folders = [
        probe(tmp_path / "p"),
        probe(tmp_path / "q", "hookpoint: 1\nreads: last\n"),
        probe(tmp_path / "r"),
    ]
    for folder in folders[:2]:
        (folder / TEXTS).write_text('{"text": "abcd", "label": 1}\n{"text": "abcde", "label": 0}\n')
    given = [str(folder) for folder in folders]
    assert cut_notes(given, Letters(), 5) == ()
    mean, last = cut_notes(given, Letters(), 4)
    assert mean.startswith(
        "1 of 2 labelled texts of the monitor p are cut to corpus.context_len=4 tokens: raise"
    )
    assert "monitor q" in last and "it reads the last token" in last


def test_a_text_of_which_nothing_can_be_scored_is_refused_at_the_plan(tmp_path: Path) -> None:
    (probe(tmp_path / "p") / TEXTS).write_text('{"text": "abcd", "label": 1}\n{"text": "a", "label": 0}\n')
    with pytest.raises(MonitorError, match="texts.jsonl: the labelled text 'a' is 1 tokens long"):
        cut_notes([str(tmp_path / "p")], Letters(), 4)
