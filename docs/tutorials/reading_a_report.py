"""Reading a report from Python: `marimo edit docs/tutorials/reading_a_report.py`."""

import marimo

__generated_with = "0.25.2"
app = marimo.App()


@app.cell(hide_code=True)
def _():
    import marimo as mo

    mo.md("""
    # Reading a report

    A finished study is a folder. `make demo` makes one in `runs/demo`; set `DELTASAE_STUDY` to read another.
    """)
    return (mo,)


@app.cell
def _():
    import os

    import deltasae_ray as ds

    study = ds.Study(root=os.environ.get("DELTASAE_STUDY", "runs/demo"))
    study
    return (study,)


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    The table is the first screen of `report.html`: an answer to four questions for every adapter. INCONCLUSIVE is not
    a pass. The layer that is seen worst leads.
    """)
    return


@app.cell
def _(study):
    labels = {verdict.adapter: verdict.label for verdict in study.verdicts}
    labels
    return (labels,)


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## A figure

    Grey is the null, black the ceiling, and the line is the 95 % interval. A point whose line reaches its null is at
    chance, whatever its value.
    """)
    return


@app.cell
def _(study):
    figure = study.figure("missing_share")
    figure
    return (figure,)


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## The tables

    Every figure is a row, with value, null, ceiling and interval. Leave out what is not beyond its null before you read
    on. [Columns](files.md), [metrics](metrics.md).
    """)
    return


@app.cell
def _(study):
    rows = study.table()
    shares = rows[rows["metric"] == "missing_share"]
    sure = shares[shares["ci_high"] < shares["null"]]
    sure[["adapter", "layer", "value", "ci_low", "ci_high", "null"]]
    return (sure,)


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## The directions

    What the adapters wrote, direction by direction, with the tokens that each raises.
    """)
    return


@app.cell
def _(study):
    latents = study.latents()
    latents.head(10)
    return (latents,)


if __name__ == "__main__":
    app.run()
