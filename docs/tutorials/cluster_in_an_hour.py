"""A cluster in an hour: `marimo edit docs/tutorials/cluster_in_an_hour.py`. Its cells are text: it starts nothing."""

import marimo

__generated_with = "0.25.2"
app = marimo.App()


@app.cell(hide_code=True)
def _():
    import marimo as mo

    mo.md("""
    # A cluster in an hour

    The same study runs on one machine and on a Ray cluster. This is the short way on AWS;
    [the whole walk](clusters.md) has Google Cloud, Kubernetes and Slurm.

    ## Look before you pay

    The plan names nodes, minutes and prices, and starts nothing:

        deltasae sweep config=paper-gemma2-9b dry_run=true
        deltasae doctor config=paper-gemma2-9b

    `doctor` says what lacks: a token of the hub, rights to the bucket, an MLflow server.
    """)
    return (mo,)


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## The cluster

    `roles.sh` makes the bucket and two roles. Set the block at the head of `cluster/aws.yaml`, then:

        bash infra/aws/roles.sh my-bucket us-west-2
        ray up cluster/aws.yaml && ray dashboard cluster/aws.yaml

    ## The study

    In another terminal. Results go where the cluster's own file says.

        ray job submit --address http://127.0.0.1:8265 -- python jobs/sweep.py config=jobs/configs/paper-gemma2-9b.yaml

    The same command continues a study that stopped, from where it was.
    """)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## Read it, and end the cluster

        aws s3 cp s3://my-bucket/deltasae/runs/paper-gemma2-9b/report.html .
        ray down cluster/aws.yaml

    From Python, `ds.Study(root="s3://my-bucket/deltasae/runs/paper-gemma2-9b")` reads the same tables
    ([how](tutorial-reading-a-report.md)).
    """)
    return


if __name__ == "__main__":
    app.run()
