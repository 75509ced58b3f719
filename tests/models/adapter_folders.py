"""Hypothesis strategies of adapter folders that are wrong in one or more ways: the config's JSON and the
weights' bytes and tensors."""

import json
import struct
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from deltasae_ray.models.adapter_files import CONFIG, WEIGHTS

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
_TEMPTING = st.sampled_from([
    "(", "[a", "*", "all-linear", "lora_A", "q_proj", "embed_tokens", "lm_head", "16", "", ".*",
        "model.layers.0", -1, 0, 2**40, 1e308, float("nan"),
    True, None, [], {}, ["("], {"(": 4}, {"q_proj": "8"}, {"q_proj": -1}, [[0]], [None], ["q_proj", 3],
        "pissa", "loftq", "orthogonal", "all",
])  # fmt: skip
FIELDS = [
    "r", "lora_alpha", "target_modules", "exclude_modules", "modules_to_save", "rank_pattern",
    "alpha_pattern", "layers_to_transform",
    "layers_pattern", "lora_dropout", "bias", "init_lora_weights", "base_model_name_or_path", "use_dora",
    "use_rslora", "lora_bias", "peft_type",
    "fan_in_fan_out", "task_type", "layer_replication", "trainable_token_indices", "target_parameters",
    "megatron_config", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "arrow_config", "runtime_config", "auto_mapping",
    "peft_version", "inference_mode", "unknown",
]  # fmt: skip
_VALUES = _JSON | _TEMPTING
_CONFIG_CHANGES = st.lists(
    st.tuples(st.just("set"), st.sampled_from(FIELDS), _VALUES)
    | st.tuples(st.just("drop"), st.sampled_from(FIELDS), st.none()),
    max_size=3,
)
_BYTES = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("before"), st.sampled_from([b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b" ", b"["])),
    st.tuples(
        st.just("all"),
        st.sampled_from(
            [
                b"",
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
                b"[]",
                b"7",
                b"[" * 100_000,
            ]
        ),
    ),
    st.tuples(st.just("all"), st.binary(max_size=40)),
    st.tuples(st.just("flip"), st.floats(0, 0.999)),
)
_KEYS = st.sampled_from([
    lambda k: k.removeprefix("base_model.model."), lambda k: k.replace(".weight", ".default.weight"),
    lambda k: k.replace(".weight", ".x.weight"),
    lambda k: k.replace("q_proj", "lora_A"), lambda k: k + ".weight", lambda k: k.replace("layers.0",
        "layers.99"), lambda _: "", lambda k: "../" + k,
    lambda k: k.replace("lora_A", "lora_C"), lambda k: k.replace("lora_A", "modules_to_save"),
    lambda k: k.replace(".lora_A", ""),
    lambda k: "base_model.model." + k, lambda _: "base_model.model.lm_head.weight",
    lambda k: k.replace("lora_", "lora_embedding_"),
])  # fmt: skip
_DTYPES = ["F64", "F16", "BF16", "I64", "I8", "BOOL", "F8_E4M3", "U8", "XX"]
_HEADER = st.one_of(
    st.tuples(st.just("key"), _KEYS),
    st.tuples(st.just("dtype"), st.sampled_from(_DTYPES)),
    st.tuples(st.just("shape"), st.lists(st.integers(0, 2**40) | st.integers(1, 40), max_size=4)),
    st.tuples(st.just("transpose"), st.none()),
    st.tuples(st.just("drop"), st.none()),
    st.tuples(st.just("nan"), st.sampled_from([float("nan"), float("inf"), 0.0, 1e38])),
)
CHANGES = st.fixed_dictionaries({
    "config": _CONFIG_CHANGES, "config_bytes": st.none() | _BYTES,
    "tensors": st.lists(st.tuples(st.integers(0, 30), _HEADER), max_size=3),
    "weights_bytes": st.none() | _BYTES,
})  # fmt: skip


def write_changed(original: dict[str, bytes], folder: Path, change: dict[str, Any]) -> None:
    """Writes an adapter's two files with the changes made."""
    config = json.loads(original[CONFIG])
    for what, name, value in change["config"]:
        if what == "set":
            config[name] = value
        else:
            config.pop(name, None)
    files = {
        CONFIG: json.dumps(config).encode(),
        WEIGHTS: _with_tensors(original[WEIGHTS], change["tensors"]),
    }
    for name, field in ((CONFIG, "config_bytes"), (WEIGHTS, "weights_bytes")):
        (folder / name).write_bytes(_with_bytes(files[name], change[field]))


def _with_bytes(data: bytes, change: tuple[str, Any] | None) -> bytes:
    if change is None:
        return data
    what, value = change
    if what == "cut":
        return data[: int(value * len(data))]
    if what == "flip":
        at = int(value * len(data))
        return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :] if data else data
    return value + data if what == "before" else value


def _with_tensors(data: bytes, changes: list[tuple[int, tuple[str, Any]]]) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    for index, (what, value) in changes:
        names = [name for name in header if name != "__metadata__"]
        if not names:
            break
        name = names[index % len(names)]
        entry = header[name]
        if what == "key":
            header[value(name)] = header.pop(name)
        elif what == "drop":
            header.pop(name)
        elif what in ("dtype", "shape"):
            entry[what] = value
        elif what == "transpose":
            entry["shape"] = entry["shape"][::-1]
        else:
            body[entry["data_offsets"][0] : entry["data_offsets"][0] + 4] = struct.pack("<f", value)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(body)
