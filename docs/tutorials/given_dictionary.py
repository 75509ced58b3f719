"""Your adapter against a given dictionary: `marimo edit docs/tutorials/given_dictionary.py`."""

import marimo

__generated_with = "0.25.2"
app = marimo.App()


@app.cell(hide_code=True)
def _():
    import marimo as mo

    mo.md("""
    # Your adapter against a given dictionary

    You have a dictionary of the base model, and want to know what it sees of an adapter. Here is the question on rows
    whose answer is known: of 24 features that the adapter writes, the base model has 12.
    """)
    return (mo,)


@app.cell
def _():
    import numpy as np

    rng = np.random.default_rng(0)

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def sparse(atoms, n):
        strengths = rng.exponential(size=(n, len(atoms))) * (rng.random((n, len(atoms))) < 0.1)
        return (strengths @ atoms).astype(np.float32)

    of_base, of_adapter = unit(rng.normal(size=(24, 32))), unit(rng.normal(size=(12, 32)))
    activations = sparse(of_base, 4000)
    delta = sparse(np.concatenate([of_base[:12], of_adapter]), 4000)
    return activations, delta


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## The given dictionary

    A dictionary is a folder in the layout of SAELens. `Dictionary.load` opens it. Here one is made first.
    """)
    return


@app.cell
def _(activations):
    import tempfile
    from pathlib import Path

    import deltasae_ray as ds

    folder = Path(tempfile.mkdtemp()) / "given"
    ds.fit_dictionary(activations, d_sae=32, k=3, steps=200).save(folder)
    given = ds.Dictionary.load(folder)
    return ds, given


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## What it sees

    A dictionary of the delta's own shows what there is to see. 0 would mean that the given dictionary explains all of
    it, and 1 that it does no better than featureless atoms. Here half of the features are missing, and what the other
    half explains is found only in part, since a fitted dictionary is not exact.
    """)
    return


@app.cell
def _(delta, ds, given):
    own = ds.fit_dictionary(delta[:3000], d_sae=32, k=3, steps=200)
    missing = ds.missing_share(delta[3000:], own.W_dec, given.W_dec, k=3, training=delta[:3000])
    f"missing share {missing.value:.2f}"
    return (missing,)


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## The same for a model

    A study does this for every layer, with controls, intervals and a verdict, and takes a published dictionary by name:

        deltasae init google/gemma-2-9b runs/r4
        deltasae sweep config=study.yaml reference=gemma-scope-9b-pt-res/layer_{layer}/width_16k/average_l0_100

    [References of all kinds](your-own.md). `ds.visibility` decides latent by latent ([how](visibility.md)).
    """)
    return


if __name__ == "__main__":
    app.run()
