"""Identity of a dictionary: one declaration, whatever holds more."""

import ast
from dataclasses import fields
from pathlib import Path

import deltasae_ray
from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.sae.identity import DictionaryId, Place, Shape, Trial

ONE = DictionaryId("r4", 9, 256, 8, "topk", 0)


def test_an_identity_knows_its_parts() -> None:
    assert (ONE.shape, ONE.trial, ONE.place) == (
        Shape(256, 8, "topk"),
        Trial("r4", 256, 8, "topk"),
        Place("r4", 9),
    )
    assert ONE.trial.shape == ONE.shape and ONE.cell == DictionaryId("r4", 9, 256, 8, "topk", 1).cell
    assert sorted([DictionaryId("r4", 12, 256, 8, "topk", 0), ONE]) == [
        ONE,
        DictionaryId("r4", 12, 256, 8, "topk", 0),
    ]


def test_whatever_holds_more_of_a_dictionary_has_the_same_identity() -> None:
    point = FitPoint(**vars(ONE), documents="A")
    leaf = LeafSpec(
        **vars(ONE), rank=4, adapter_seed=0, dictionary="dictionaries/a", reference="dictionaries/b"
    )
    assert point.identity == leaf.identity == ONE and point != ONE and str(leaf) == str(ONE)


def test_no_other_class_declares_the_fields_of_an_identity() -> None:
    ours = {f.name for f in fields(DictionaryId)}
    for path in Path(deltasae_ray.__file__).parent.rglob("*.py"):
        for found in (
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
        ):
            declared = {
                f.target.id
                for f in found.body
                if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)
            }
            # Rows of a finished study's tables and of its page, where each of the fields may be missing.
            if (path.parent.name, found.name) in {("gate", "Row"), ("report", "MeasureRow")}:
                continue
            if found.name not in {"DictionaryId", "Trial"}:
                assert len(ours & declared) < 3 or not {"adapter", "layer"} & declared, (
                    f"{path}: {found.name}"
                )


def test_fields_stay_in_the_order_that_points_are_sorted_by() -> None:
    assert [f.name for f in fields(DictionaryId)] == [
        "adapter",
        "layer",
        "d_sae",
        "k",
        "architecture",
        "seed",
    ]
    assert FitPoint("r4", 1, 32, 4, "topk", 0) < FitPoint("r4", 1, 32, 4, "topk", 1)
