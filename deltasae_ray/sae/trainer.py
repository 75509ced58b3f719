"""Training one dictionary, one step at a time. Stopping and resuming between any two steps changes no bit
(CPU, fp32)."""

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deltasae_ray.errors import DictionaryError
from deltasae_ray.sae import kernels
from deltasae_ray.sae.architectures import (
    SELECTING,
    THRESHOLD_ON_FREEZING,
    Forward,
    Weights,
    dense_forward,
    missed_by_dead,
    sparse_forward,
)
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.peers import Peers
from deltasae_ray.sae.recipe import Recipe, measure
from deltasae_ray.sae.start import first_weights
from deltasae_ray.sae.trainer_state import restore, trainer_state

CURVE_POINTS = 50
"""Points of the learning curve."""
THRESHOLD_ROWS = 65_536
"""Training rows, at most, from which thresholds are found."""
_BANDWIDTH = 0.3
"""jumprelu: window of the thresholds' gradient, as a share of their start."""
_L0_WEIGHT = 0.1
"""jumprelu: weight of (L0 / k - 1)² beside the share of energy that is missed."""
_L1_GAIN = 0.03
"""standard: by how much, at most, a step changes the logarithm of the penalty to bring L0 to k."""


class Trainer:
    """`while not trainer.done: trainer.step()`, then `trainer.finish()`.

    Trains in scaled units y = scale · (x − mean), so that b_dec starts at the mean; `finish` folds both back
    into raw units. The state is weights, optimizer, firing counters, the reader's position (the step: the
    order of an epoch's rows follows from seed and epoch, so there is no other random state) and the learning
    curve.
    """

    def __init__(
        self,
        x: Float[Tensor, "token d_model"],
        recipe: Recipe,
        seed: int,
        device: torch.device | str = "cpu",
        peers: Peers | None = None,
    ) -> None:
        """Raises what `recipe.measure` raises of unusable rows. `x` stays where it is; batches are copied to
        `device`.

        Args:
            peers: other processes that train the same dictionary on the same rows; each takes its share of
                every batch.
        """
        self.x = x
        self.recipe = recipe
        self.seed = seed
        self.device = torch.device(device)
        self.peers = peers or Peers()
        self.scaling = measure(x)
        self.batch = min(recipe.batch_tokens, len(x))
        self.dead_tokens = min(recipe.dead_tokens, len(x))
        self.steps_done = 0
        self.window_begins = 0
        self.rows_before = 0
        self.curve: list[dict[str, float]] = []
        # Six digits: rows that are drawn again, or summed by another number of threads, differ in the last
        # bits.
        scale = float(f"{self.scaling.scale:.6g}")
        self.made_for = {
            "recipe": dataclasses.asdict(recipe),
            "seed": seed,
            "rows": list(x.shape),
            "scale": scale,
        }
        self._mean = self.scaling.mean.to(self.device)
        self._order: tuple[int, Int[Tensor, " token"]] = (-1, torch.empty(0, dtype=torch.int64))
        self.weights = first_weights(x, recipe, self.scaling, seed, self.device)
        self._bandwidth = 0.0
        if recipe.architecture == "jumprelu":
            threshold = self._threshold()
            self._bandwidth = _BANDWIDTH * threshold
            self.weights.log_threshold.fill_(threshold).log_()
        for weight in self.weights:
            weight.requires_grad_(recipe.train_decoder or weight is not self.weights.decoder)
        self.idle = torch.zeros(recipe.d_sae, dtype=torch.int64, device=self.device)
        self.pressure = torch.tensor(self._first_pressure(), dtype=torch.float64, device=self.device)
        self.sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.optimizer = torch.optim.Adam(
            [w for w in self.weights if len(w) and w.requires_grad], lr=recipe.lr, fused=True
        )

    @property
    def done(self) -> bool:
        return self.steps_done >= self.recipe.steps

    def take_window(self, x: Float[Tensor, "token d_model"], begins: int, rows_before: int) -> None:
        """Draws the steps from `begins` on from the rows of a later window of a stream. Mean, scale and start
        stay the first window's.

        Args:
            rows_before: rows of the windows before it, for the dictionary's own account.
        """
        self.x, self.window_begins, self.rows_before = x, begins, rows_before
        self.batch = min(self.recipe.batch_tokens, len(x))
        self._order = (-1, torch.empty(0, dtype=torch.int64))

    def step(self) -> None:
        """One batch. Raises DictionaryError where training has run off to infinity."""
        y = self.next_batch()
        forward = self._forward(y)
        sums = torch.stack(
            [forward.error.square().sum(), y.square().sum(), y.new_tensor(len(forward.fired))]
        ).double()
        self.peers.sum(sums)
        energy = sums[1].clamp_min(torch.finfo(torch.float32).tiny).float()
        loss = forward.missed / energy + self._penalty(forward, l0=sums[2] / self.batch)
        dead = self._count(forward.fired)
        if self.recipe.auxk and len(dead):
            loss = loss + self.recipe.auxk * self._auxk(y, dead, forward.error)
        self._update(loss)
        self.sums += sums[:2]
        self.steps_done += 1
        self.note(len(dead))

    def next_batch(self) -> Float[Tensor, "batch d_model"]:
        """The scaled rows of the next step, or this process' share of them."""
        epoch, place = divmod(self.steps_done - self.window_begins, len(self.x) // self.batch)
        if epoch != self._order[0]:
            generator = torch.Generator().manual_seed((self.seed << 32) + epoch + 1)
            self._order = epoch, torch.randperm(len(self.x), generator=generator)
        rows = self._order[1][place * self.batch : (place + 1) * self.batch][
            self.peers.rank :: self.peers.world
        ]
        return self._scaled(self.x[rows.to(self.x.device)])

    def _scaled(self, rows: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
        return (rows.to(self.device, torch.float32) - self._mean).mul_(self.scaling.scale)

    def _encoder(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weights.encoder, self.weights.b_enc, self.weights.b_dec

    def _forward(self, y: Float[Tensor, "batch d_model"]) -> Forward:
        if self.recipe.architecture in SELECTING:
            return sparse_forward(
                y, self.weights, self.recipe.architecture, self.recipe.k, self.peers, self.batch
            )
        return dense_forward(y, self.weights, self.recipe.architecture, self._bandwidth)

    def _penalty(self, forward: Forward, l0: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """What is paid for activity; of (L0 / k - 1)² its tangent, so that peers' shares add up. Adjusts the
        weight of L1."""
        over = (l0 / self.recipe.k - 1).float()
        if self.recipe.architecture == "jumprelu":
            return 2 * _L0_WEIGHT * over * forward.price / (self.recipe.k * self.batch)
        if self.recipe.architecture == "standard":
            weight = (self.pressure / (self.batch * self.x.shape[1] ** 0.5)).float()
            if not self.recipe.l1:
                self.pressure *= torch.exp(_L1_GAIN * over.clamp(-1, 1))
            return weight * forward.price
        return forward.price

    def _first_pressure(self) -> float:
        """Weight of Σ codes / √d_model beside the share of energy that is missed, for the recipe's own
        convention of `l1`."""
        return self.recipe.l1 * self.x.shape[1] / self.recipe.d_sae if self.recipe.l1 else 0.01

    @torch.no_grad()
    def _threshold(self) -> float:
        """Above which k latents fire per training token: the mean, over batches, of the weakest that
        BatchTopK would choose."""
        rows = self.x[:: max(1, len(self.x) // THRESHOLD_ROWS)]
        blocks = rows.tensor_split(
            -(-len(rows) // max(1, min(len(rows), 2**25 // self.recipe.d_sae)))
        )  # alike, so that all weigh the same
        chosen = [
            kernels.batch_topk(kernels.preactivations(self._scaled(b), *self._encoder()), self.recipe.k)[0]
            for b in blocks
        ]
        if not all(len(codes) for codes in chosen):
            raise DictionaryError(
                "no latent fires on some block of the training rows: lower the learning rate or take more"
                " steps"
            )
        return float(torch.stack([codes.min() for codes in chosen]).mean())

    def _count(self, fired: Int[Tensor, " entry"]) -> Int[Tensor, " dead"]:
        """Resets the counters of the latents that fired; returns those that have not for too long."""
        times = torch.bincount(fired, minlength=self.recipe.d_sae)
        self.peers.sum(times)
        self.idle += self.batch
        self.idle[times > 0] = 0
        return (self.idle >= self.dead_tokens).nonzero().squeeze(1)

    def _auxk(
        self,
        y: Float[Tensor, "batch d_model"],
        dead: Int[Tensor, " dead"],
        left: Float[Tensor, "batch d_model"],
    ) -> Float[Tensor, ""]:
        """Share of what the living latents left over that the strongest dead ones miss."""
        energy = left.square().sum()
        self.peers.sum(energy)
        return missed_by_dead(y, self.weights, dead, left) / energy.clamp_min(torch.finfo(torch.float32).tiny)

    def _update(self, loss: Float[Tensor, ""]) -> None:
        self.optimizer.param_groups[0]["lr"] = self.recipe.rate(self.steps_done)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for weight in self.weights:
            if weight.grad is not None:
                self.peers.sum(weight.grad)
        self.optimizer.step()
        if not self.recipe.train_decoder:
            return
        with torch.no_grad():
            self.weights.decoder.div_(torch.linalg.vector_norm(self.weights.decoder, dim=1, keepdim=True))

    def note(self, dead: int) -> None:
        """Adds a point to the learning curve where one is due. Raises DictionaryError where training has run
        off to infinity."""
        done, steps = self.steps_done, self.recipe.steps
        if not self.done and done * CURVE_POINTS // steps == (done - 1) * CURVE_POINTS // steps:
            return
        fvu = float(self.sums[0] / self.sums[1])
        if not fvu < float("inf"):
            raise DictionaryError(
                f"training ran off to infinity by step {self.steps_done}: lower the learning rate"
                f" {self.recipe.lr}"
            )
        self.curve.append({"step": self.steps_done, "fvu": fvu, "dead": dead})
        self.sums.zero_()

    def state_dict(self) -> dict[str, Any]:
        """What training continues from: tensors and JSON-like values only, so that nothing needs pickle."""
        return trainer_state(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken.

        Raises:
            DictionaryError: it was taken with another recipe, seed or shape of data.
        """
        restore(self, state)

    def finish(self, **meta: Any) -> Dictionary:
        """The dictionary in raw units, with firing and energy measured on the training rows (of a stream:
        those of its last window). `meta` is kept with it."""
        scale, recipe = self.scaling.scale, self.recipe
        w = Weights(*(weight.detach().clone() for weight in self.weights))
        rows = self.rows_before + len(self.x)
        known = {
            "seed": self.seed,
            "rows": rows,
            "recipe": dataclasses.asdict(recipe),
            "scale": scale,
            "curve": self.curve,
        }
        threshold = w.log_threshold.exp() / scale if recipe.architecture == "jumprelu" else None
        if recipe.architecture in THRESHOLD_ON_FREEZING:
            threshold = torch.full((recipe.d_sae,), self._threshold() / scale, device=self.device)
        dictionary = Dictionary(
            W_enc=w.encoder.T.contiguous(),
            W_dec=w.decoder,
            b_enc=w.b_enc / scale,
            b_dec=w.b_dec / scale + self._mean,
            architecture="jumprelu" if threshold is not None else recipe.architecture,
            k=recipe.k if recipe.architecture == "topk" else 0,
            firing=torch.ones(recipe.d_sae, device=self.device),
            energy=torch.ones(recipe.d_sae, device=self.device),
            meta=known | meta,
            threshold=threshold,
            mean=self._mean,
        )
        return dictionary.measured(self.x)
