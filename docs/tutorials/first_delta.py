"""The first delta, in two minutes and without Ray: `marimo edit docs/tutorials/first_delta.py`."""

import marimo

__generated_with = "0.25.2"
app = marimo.App()


@app.cell(hide_code=True)
def _():
    import marimo as mo

    mo.md("""
    # The first delta

    This needs no GPU, no Ray and no download. It makes a small model and an adapter, takes the *delta*, which is what
    the adapter adds to the activations, and asks whether a dictionary of the base model explains it.

    ## A model and an adapter

    Any model of `transformers` and any LoRA adapter of PEFT will do. Here both are small and random.
    """)
    return (mo,)


@app.cell
def _():
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64}
    base = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=4, num_attention_heads=4))
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(base, lora).eval()
    return model, torch


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## The delta

    The same tokens go through the model twice: with the adapter, and without it. The delta at a layer is the difference
    of the activations, in fp32. The first token of every text is left out, since its activations are unlike all others.
    """)
    return


@app.cell
def _(model, torch):
    ids = torch.randint(3, 320, (32, 48))
    with torch.no_grad():
        adapted = model(ids, output_hidden_states=True).hidden_states[3]
        with model.disable_adapter():
            plain = model(ids, output_hidden_states=True).hidden_states[3]

    delta = (adapted - plain)[:, 1:].reshape(-1, 32).numpy()
    activations = plain[:, 1:].reshape(-1, 32).numpy()
    delta.shape
    return activations, delta


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## Two dictionaries

    A dictionary is fitted to the delta, and another, the reference, to the activations of the base model.
    """)
    return


@app.cell
def _(activations, delta):
    import deltasae_ray as ds

    train, held_out = delta[:1000], delta[1000:]
    own = ds.fit_dictionary(train, d_sae=48, k=4, steps=30)
    reference = ds.fit_dictionary(activations[:1000], d_sae=48, k=4, steps=30)
    return ds, held_out, own, reference, train


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## What the reference misses

    `max_cosine` compares directions. Its value means nothing without its null: what directions give that know the
    covariance and nothing else.
    """)
    return


@app.cell
def _(ds, own, reference):
    cosine = ds.max_cosine(own.W_dec, reference.W_dec)
    f"cosine {cosine.value:.2f}, by chance {cosine.null:.2f}"
    return (cosine,)


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    `missing_share` asks how much of the delta's structure the reference does not explain, on rows that no dictionary has
    seen. A random adapter writes no features, so here there is nothing to miss: the figure is undefined, and says why.
    """)
    return


@app.cell
def _(ds, held_out, own, reference, train):
    missing = ds.missing_share(held_out, own.W_dec, reference.W_dec, k=4, training=train)
    missing.value, missing.reason
    return (missing,)


if __name__ == "__main__":
    app.run()
