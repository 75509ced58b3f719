"""Training one dictionary, one step at a time. Stopping and resuming between any two steps changes no bit (CPU, fp32)."""

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deltasae_ray.errors import DictionaryError
from deltasae_ray.sae import kernels
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.recipe import Recipe, measure, start_rows

CURVE_POINTS = 50
"""Points of the learning curve."""
_WEIGHTS = ("encoder", "decoder", "b_enc", "b_dec")


class Trainer:
    """`while not trainer.done: trainer.step()`, then `trainer.finish()`.

    Trains in scaled units y = scale · (x − mean), so that b_dec starts at the mean; `finish` folds both back into raw units.
    The state is weights, optimizer, firing counters, the reader's position (the step: the order of an epoch's rows follows
    from seed and epoch, so there is no other random state) and the learning curve.
    """

    def __init__(self, x: Float[Tensor, "token d_model"], recipe: Recipe, seed: int, device: torch.device | str = "cpu") -> None:
        """Raises what `recipe.measure` raises of unusable rows. `x` stays where it is; batches are copied to `device`."""
        self.x = x
        self.recipe = recipe
        self.seed = seed
        self.device = torch.device(device)
        self.scaling = measure(x)
        self.batch = min(recipe.batch_tokens, len(x))
        self.dead_tokens = min(recipe.dead_tokens, len(x))
        self.steps_done = 0
        self.curve: list[dict[str, float]] = []
        self._mean = self.scaling.mean.to(self.device)
        self._order: tuple[int, Int[Tensor, " token"]] = (-1, torch.empty(0, dtype=torch.int64))
        # Encoder rows start as decoder rows: a latent then fires on what it writes, and few are born dead.
        start = start_rows(x, self.scaling, recipe.d_sae, torch.Generator().manual_seed(seed)).to(self.device)
        self.encoder = start.clone().requires_grad_()
        self.decoder = start.clone().requires_grad_()
        self.b_enc = torch.zeros(recipe.d_sae, device=self.device, requires_grad=True)
        self.b_dec = torch.zeros(x.shape[1], device=self.device, requires_grad=True)
        self.idle = torch.zeros(recipe.d_sae, dtype=torch.int64, device=self.device)
        self._sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.optimizer = torch.optim.Adam([getattr(self, name) for name in _WEIGHTS], lr=recipe.lr, fused=True)

    @property
    def done(self) -> bool:
        return self.steps_done >= self.recipe.steps

    def step(self) -> None:
        """One batch. Raises DictionaryError where training has run off to infinity."""
        y = self._next_batch()
        with torch.no_grad():
            pre = kernels.preactivations(y, self.encoder, self.b_enc, self.b_dec)
            values, indices = pre.topk(self.recipe.k, dim=1, sorted=False)
            chosen = kernels.active(indices, self.recipe.d_sae)
        codes = kernels.encode(y, self.encoder, self.b_enc, self.b_dec, values, chosen)
        error = y - self.b_dec - kernels.decode(codes, self.decoder, chosen)
        sums = torch.stack([error.square().sum(), y.square().sum()])
        loss = sums[0] / sums[1].clamp_min(torch.finfo(torch.float32).tiny)
        dead = self._count(indices[values > 0], len(y))
        if self.recipe.auxk and len(dead):
            loss = loss + self.recipe.auxk * self._auxk(y, pre, dead, error.detach())
        self._update(loss)
        self._sums += sums.detach().double()
        self.steps_done += 1
        if self.done or self.steps_done * CURVE_POINTS // self.recipe.steps != (self.steps_done - 1) * CURVE_POINTS // self.recipe.steps:
            self._note(len(dead))

    def _next_batch(self) -> Float[Tensor, "batch d_model"]:
        epoch, place = divmod(self.steps_done, len(self.x) // self.batch)
        if epoch != self._order[0]:
            generator = torch.Generator().manual_seed((self.seed << 32) + epoch + 1)
            self._order = epoch, torch.randperm(len(self.x), generator=generator)
        rows = self._order[1][place * self.batch : (place + 1) * self.batch]
        return (self.x[rows.to(self.x.device)].to(self.device, torch.float32) - self._mean).mul_(self.scaling.scale)

    def _count(self, fired: Int[Tensor, " any"], tokens: int) -> Int[Tensor, " dead"]:
        """Resets the counters of the latents that fired; returns those that have not for too long."""
        self.idle += tokens
        self.idle[fired] = 0
        return (self.idle >= self.dead_tokens).nonzero().squeeze(1)

    def _auxk(
        self,
        y: Float[Tensor, "batch d_model"],
        pre: Float[Tensor, "batch d_sae"],
        dead: Int[Tensor, " dead"],
        left: Float[Tensor, "batch d_model"],
    ) -> Float[Tensor, ""]:
        """Share of what the living latents left over that the strongest dead ones miss (Gao et al. 2024, appendix A.2)."""
        values, at = pre[:, dead].topk(min(y.shape[1] // 2, len(dead)) or 1, dim=1, sorted=False)
        chosen = kernels.active(dead[at], self.recipe.d_sae)
        codes = kernels.encode(y, self.encoder, self.b_enc, self.b_dec, values, chosen)
        missed = left - kernels.decode(codes, self.decoder, chosen)
        return missed.square().sum() / left.square().sum().clamp_min(torch.finfo(torch.float32).tiny)

    def _update(self, loss: Float[Tensor, ""]) -> None:
        self.optimizer.param_groups[0]["lr"] = self.recipe.rate(self.steps_done)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.decoder.div_(torch.linalg.vector_norm(self.decoder, dim=1, keepdim=True))

    def _note(self, dead: int) -> None:
        fvu = float(self._sums[0] / self._sums[1])
        if not fvu < float("inf"):
            raise DictionaryError(f"training ran off to infinity by step {self.steps_done}: lower the learning rate {self.recipe.lr}")
        self.curve.append({"step": self.steps_done, "fvu": fvu, "dead": dead})
        self._sums.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON-like values only: nothing in it needs pickle."""
        moments = {
            f"{kind}.{name}": self.optimizer.state[getattr(self, name)].get(kind, torch.zeros(()))
            for name in _WEIGHTS
            for kind in ("exp_avg", "exp_avg_sq", "step")
        }
        tensors = {name: getattr(self, name) for name in _WEIGHTS} | moments | {"idle": self.idle, "sums": self._sums}
        return {
            "tensors": {name: tensor.detach().clone() for name, tensor in tensors.items()},
            "steps_done": self.steps_done,
            "curve": [dict(point) for point in self.curve],
            "made_for": self._made_for(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken.

        Raises:
            DictionaryError: it was taken with another recipe, seed or shape of data.
        """
        if state.get("made_for") != self._made_for():
            raise DictionaryError(f"this checkpoint is of {state.get('made_for')}, not of {self._made_for()}: delete it to start afresh")
        tensors = state["tensors"]
        with torch.no_grad():
            for name in _WEIGHTS:
                weight = getattr(self, name)
                weight.copy_(tensors[name])
                if state["steps_done"]:
                    kept = {kind: tensors[f"{kind}.{name}"].clone() for kind in ("exp_avg", "exp_avg_sq", "step")}
                    self.optimizer.state[weight] = {kind: tensor.to(self.device) for kind, tensor in kept.items()}
            self.idle.copy_(tensors["idle"])
            self._sums.copy_(tensors["sums"])
        self.steps_done = state["steps_done"]
        self.curve = [dict(point) for point in state["curve"]]

    def _made_for(self) -> dict[str, Any]:
        return {"recipe": dataclasses.asdict(self.recipe), "seed": self.seed, "rows": list(self.x.shape), "scale": self.scaling.scale}

    def finish(self, **meta: Any) -> Dictionary:
        """The dictionary in raw units, with firing and energy measured on all training rows. `meta` is kept with it."""
        scale = self.scaling.scale
        weights = {name: getattr(self, name).detach().clone() for name in _WEIGHTS}
        known = {"seed": self.seed, "rows": len(self.x), "recipe": dataclasses.asdict(self.recipe), "scale": scale, "curve": self.curve}
        dictionary = Dictionary(
            W_enc=weights["encoder"].T.contiguous(),
            W_dec=weights["decoder"],
            b_enc=weights["b_enc"] / scale,
            b_dec=weights["b_dec"] / scale + self._mean,
            architecture=self.recipe.architecture,
            k=self.recipe.k,
            firing=torch.ones(self.recipe.d_sae, device=self.device),
            energy=torch.ones(self.recipe.d_sae, device=self.device),
            meta=known | meta,
            mean=self._mean,
        )
        return dictionary.measured(self.x)
