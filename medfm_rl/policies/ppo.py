"""PPO with a ratio, an advantage and a clip for every pixel."""

from __future__ import annotations

import copy
import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HumanOutputFormat, Logger
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.activations import recomputed_activations
from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.networks import images_at_once, mixed_precision, pixel_entropy
from medfm_rl.policies.acting import act_on, among_all
from medfm_rl.policies.buffer import DenseRollout, DenseRolloutBuffer
from medfm_rl.policies.checkpoints import TrainingState, load_networks, load_optimisers, read_state, write_checkpoint
from medfm_rl.policies.distribution import DenseCategorical, kl_divergence
from medfm_rl.policies.losses import clipped_policy_loss, greedy_advantages, normalise_advantages
from medfm_rl.policies.policy import DenseActorCriticPolicy
from medfm_rl.policies.statistics import MinibatchValues, mean_of_all, mean_square, note
from medfm_rl.processes.team import ALONE, Team
from medfm_rl.seeding import torch_generator
from medfm_rl.settings import PPOHyperparameters

_LOG = logging.getLogger(__name__)


class DensePPO(PPO):
    """stable-baselines3's PPO for label maps: `learn, save, load, predict`, callbacks and logger work as there.

    One update costs, for K inner epochs: one forward of actor, reference and reward network in the rollout, then K
    backwards and K - 1 more forwards of the actor (the first epoch uses the rollout's own graph) and, with a critic, K
    forwards and backwards of it (the first forward gives the baseline). That is 12 forwards and 10 backwards for K = 5.
    Images that are too large for one graph (`images_at_once`) pass the networks a few at a time and their gradients are
    summed; the graphs of the rollout are then not kept, which is one more forward of the actor an image.

    Of a team of processes, each acts on its images of every rollout and learns from its images of every minibatch, with
    what is drawn for all of them, and the gradients are summed: the weights are those of one process but for rounding.

    The advantage of a pixel is its reward minus a baseline. "critic" learns the baseline. "greedy" takes the reward of
    the argmax action at that pixel, and counts only pixels where the two actions differ: the reward of an unchanged
    pixel also moves, because its neighbours changed, and crediting its own choice with that would push the policy away
    from classes that are right. Advantages are divided by their root mean square over the minibatch and not centred: no
    advantage stays no advantage.

    Args:
        env: Images and reward.
        segmenter: Images to logits; trained in place.
        settings: Hyper-parameters, those of `PPOHyperparameters()` where None. Nothing else is asked for them: what
            stable-baselines3 keeps under the same names is a copy.
        critic: Images to values `(B, 1, *S)`; needed by the baseline "critic" and only there.
        trainable: Parameters of the segmenter that may change; all where None.
        reference: Policy that the KL term keeps near; a frozen copy of the segmenter as it is now where None.
        n_steps: Rollout steps (of `env.num_envs` images each) per update.
        batch_size: Images per minibatch; the whole rollout where None.
        autocast: bfloat16 in the networks, where the hardware has it.
        recompute: Compute activations of the policy again for each gradient, to save memory.
        seed: Seed of the sampled actions.
        device: Where actor, critic and reference are.
        team: The processes that share it; all have the same segmenter and environment.
        verbose: 1 prints what is logged. Files are written by a logger with a folder, given to `set_logger`.

    Raises:
        ValueError: There is a critic and another baseline, or the baseline "critic" and none.
    """

    policy: DenseActorCriticPolicy
    rollout_buffer: DenseRolloutBuffer

    def __init__(
        self,
        env: SegmentationVecEnv,
        segmenter: nn.Module,
        settings: PPOHyperparameters | None = None,
        *,
        critic: nn.Module | None = None,
        trainable: list[nn.Parameter] | None = None,
        reference: nn.Module | None = None,
        n_steps: int = 1,
        batch_size: int | None = None,
        autocast: bool = False,
        recompute: bool = False,
        seed: int = 0,
        device: torch.device | str = "auto",
        team: Team = ALONE,
        verbose: int = 0,
    ) -> None:
        settings = PPOHyperparameters() if settings is None else settings
        if (critic is not None) != (settings.baseline == "critic"):
            raise ValueError("a critic is needed by the baseline 'critic', and only there")
        self.settings = settings
        self.autocast = autocast
        self.recompute = recompute
        self.team = team
        env.rated = team.rows(env.num_envs)
        self.reference = copy.deepcopy(segmenter) if reference is None else reference
        self.reference.eval().requires_grad_(False)
        super().__init__(
            DenseActorCriticPolicy,
            env,
            learning_rate=settings.learning_rate,
            n_steps=n_steps,
            batch_size=n_steps * env.num_envs if batch_size is None else batch_size,
            n_epochs=settings.n_epochs,
            gamma=1.0,
            gae_lambda=1.0,
            clip_range=settings.clip_range,
            normalize_advantage=False,
            ent_coef=settings.ent_coef,
            max_grad_norm=settings.max_grad_norm,
            target_kl=settings.target_kl,
            rollout_buffer_class=DenseRolloutBuffer,
            policy_kwargs={
                "segmenter": segmenter,
                "critic": critic,
                "trainable": trainable,
                "critic_learning_rate": settings.critic_learning_rate,
            },
            verbose=verbose,
            seed=seed,
            device=device,
        )
        # Where it is given none, stable-baselines3 makes a folder for one among the temporary files at every `learn`.
        self.set_logger(Logger(None, [HumanOutputFormat(sys.stdout)] if verbose else []))
        self.reference.to(self.device)
        self._rollout_log_probs: Tensor | None = None
        self._mean_reward = float("nan")

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seeds the spaces and the order of the images, and sets how convolutions on a GPU choose their algorithm.

        stable-baselines3 seeds the generators of the process too, which belong to the caller: actions are drawn from
        generators of their own, and the networks stay in evaluation mode.
        """
        if seed is None:
            return
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        self.action_space.seed(seed)
        if self.env is not None:
            self.env.seed(seed)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Samples actions for `n_rollout_steps` batches of images; False where a callback asks to stop."""
        if not isinstance(env, SegmentationVecEnv) or not isinstance(rollout_buffer, DenseRolloutBuffer):
            raise TypeError("DensePPO learns in a SegmentationVecEnv with a DenseRolloutBuffer")
        rollout_buffer.reset()
        callback.on_rollout_start()
        generator = torch_generator(self.seed or 0, "rollout", self.num_timesteps)
        # One minibatch: the graph of the rollout's forward serves the first inner epoch.
        keeps_graph = n_rollout_steps == 1 and self.batch_size >= env.num_envs and self._at_once >= env.num_envs
        for _ in range(n_rollout_steps):
            new_obs, rewards, dones, infos = self._step(env, rollout_buffer, generator, keeps_graph)
            self._mean_reward = mean_of_all(rewards, self.team, self.device)
            self.num_timesteps += env.num_envs
            self._last_obs = np.asarray(new_obs)
            self._last_episode_starts = dones
            callback.update_locals(locals())
            if not callback.on_step():
                return False
        callback.on_rollout_end()
        return True

    def _step(
        self, env: SegmentationVecEnv, buffer: DenseRolloutBuffer, generator: torch.Generator, keeps_graph: bool
    ) -> VecEnvStepReturn:
        """One batch of images, acted on and rated, into the buffer; what the environment returned.

        What it needs by the way is gone when it returns: maps of large patches fill the memory.
        """
        own, greedy_baseline = env.rated, self.settings.baseline == "greedy"
        images = torch.as_tensor(np.asarray(self._last_obs), device=self.device)
        acts = act_on(
            images,
            range(len(images))[own],
            partial(self._distribution, keeps_graph=keeps_graph),
            partial(torch.randn, generator=generator),
            self.policy.num_classes,
            self._at_once,
            self.settings.noise_length,
        )
        # A view would keep the images of all processes in memory.
        images = images[own].clone() if len(images[own]) < len(images) else images
        actions, greedy = acts.actions, acts.greedy
        greedy_maps = env.reward_maps(among_all(greedy, env)) if greedy_baseline else None
        found = env.step(among_all(actions, env))
        maps = torch.as_tensor(np.stack([info["reward_map"] for info in found[3]])[own], device=self.device)
        advantages = None
        if greedy_maps is not None:
            advantages = greedy_advantages(maps, actions, greedy_maps[own].to(maps), greedy)
        near = self._reference_log_probs(images)
        buffer.add(images, actions, acts.log_probs, None if greedy_baseline else maps, advantages, near, own)
        self._rollout_log_probs = acts.graph if keeps_graph else None
        return found

    def _distribution(self, images: Tensor, keeps_graph: bool = True) -> DenseCategorical:
        """The policy on some images, with a graph where it is asked for one."""
        recomputes = recomputed_activations(self.policy.segmenter, self.recompute) if keeps_graph else nullcontext()
        with torch.set_grad_enabled(keeps_graph), self._precision(), recomputes:
            return self.policy.distribution(images)

    @property
    def _at_once(self) -> int:
        """Images that the networks are shown together."""
        return images_at_once(self.policy.grid, self.batch_size)

    def train(self) -> None:
        """Updates actor and critic with the current rollout.

        Raises:
            FloatingPointError: A loss is not finite; no weight has been changed by it.
        """
        self._update_learning_rate(self.policy.optimizer)
        generator = torch_generator(self.seed or 0, "minibatches", self.num_timesteps)
        target_kl = self.settings.target_kl
        statistics: dict[str, list[float]] = {}
        for epoch in range(self.settings.n_epochs):
            for rollout in self.rollout_buffer.get(self.batch_size, generator):
                advantages = self._train_critic(rollout, first=epoch == 0, statistics=statistics)
                approx_kl = self._train_actor(rollout, advantages, statistics)
                if target_kl is not None and approx_kl > 1.5 * target_kl:
                    _LOG.info(
                        "PPO update %d: stopped in inner epoch %d of %d, at a KL of %.4f to the rollout (target_kl %g)",
                        self._n_updates + 1,
                        epoch + 1,
                        self.settings.n_epochs,
                        approx_kl,
                        target_kl,
                    )
                    break
            else:
                continue
            break
        self._n_updates += 1
        self._rollout_log_probs = None
        for name, values in statistics.items():
            self.logger.record(f"train/{name}", float(np.mean(values)))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("rollout/reward_mean", self._mean_reward)

    def save(self, path: str | Path, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Writes weights, optimiser states (safetensors) and hyper-parameters (JSON) into a new folder.

        Nothing is pickled, unlike in stable-baselines3's own format.

        Raises:
            DataError: The folder exists and is not empty, or cannot be written.
        """
        del args, kwargs
        state = TrainingState(
            settings=self.settings,
            n_steps=self.n_steps,
            batch_size=self.batch_size,
            autocast=self.autocast,
            seed=self.seed,
            num_timesteps=self.num_timesteps,
            n_updates=self._n_updates,
        )
        write_checkpoint(Path(path), state, self.policy, self.reference)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        path: str | Path,
        env: SegmentationVecEnv,
        segmenter: nn.Module,
        settings: PPOHyperparameters | None = None,
        *,
        critic: nn.Module | None = None,
        **changes: Any,
    ) -> Self:
        """Reads what `save` wrote; learning goes on as if it had never stopped.

        Args:
            path: The folder.
            env: The environment; it is put at the image that comes next.
            segmenter: A network like the one that was saved; its weights are replaced. One with low-rank parts has the
                weights that they were added to: the parts alone are replaced.
            settings: Hyper-parameters to go on with; those that were saved where None.
            critic: The same for the critic.
            **changes: Further arguments of the constructor; `n_steps`, `batch_size`, `autocast` and `seed` are those
                that were saved where they are not given.

        Raises:
            ModelError: The folder is not such a one, does not fit the networks, or was written by a newer version.
        """
        folder, reference = Path(path), copy.deepcopy(segmenter)
        state = read_state(folder)
        load_networks(folder, segmenter, reference, critic)
        settings = state.settings if settings is None else settings
        arguments = {
            "n_steps": state.n_steps,
            "batch_size": state.batch_size,
            "autocast": state.autocast,
            "seed": state.seed,
            **changes,
        }
        ppo = cls(env, segmenter, settings, critic=critic, reference=reference, **arguments)
        load_optimisers(folder, ppo.policy)
        ppo.num_timesteps, ppo._n_updates = state.num_timesteps, state.n_updates
        env.position = state.num_timesteps
        return ppo

    def _precision(self) -> AbstractContextManager[object]:
        return mixed_precision(self.device, len(self.policy.grid)) if self.autocast else nullcontext()

    @torch.no_grad()
    def _reference_log_probs(self, images: Tensor) -> Tensor | None:
        if self.settings.kl_coef == 0:
            return None
        found = torch.empty((len(images), self.policy.num_classes, *images.shape[2:]), device=self.device)
        for start in range(0, len(images), self._at_once):
            rows = slice(start, start + self._at_once)
            with self._precision():
                logits: Tensor = self.reference(images[rows])
            found[rows] = logits.float().log_softmax(dim=1)
        return found

    def _train_critic(self, rollout: DenseRollout, first: bool, statistics: dict[str, list[float]]) -> Tensor:
        """One step of the critic, if there is one; returns the advantages of the minibatch."""
        critic, optimiser = self.policy.critic, self.policy.critic_optimizer
        if optimiser is None or critic is None:
            return rollout.advantages
        told, advantages = MinibatchValues("value_loss", device=self.device), [rollout.advantages[:0]]
        optimiser.zero_grad()
        for part in rollout.split(self._at_once):
            assert part.rewards is not None
            with self._precision():
                values = self.policy.predict_values(part.images)
            advantages.append(part.rewards - values.detach().float() if first else part.advantages)
            loss = F.mse_loss(values.float(), part.rewards)
            share = len(part.rows) / rollout.of
            self._backward(loss, share, "value")
            told.add(share, value_loss=loss.item())
        norm = self._apply(optimiser, list(critic.parameters()))
        note(statistics, **told.of_all(self.team), critic_grad_norm=norm)
        found = torch.cat(advantages)
        if first:
            self.rollout_buffer.set_advantages(rollout.rows, found)
        return found

    def _train_actor(self, rollout: DenseRollout, advantages: Tensor, statistics: dict[str, list[float]]) -> float:
        """One step of the actor; returns the approximate KL to the rollout's policy."""
        normalised = normalise_advantages(advantages, mean_square(advantages, rollout.of, self.team))
        regularised = {"kl_reference": self.settings.kl_coef, "entropy": self.settings.ent_coef}
        terms = [name for name, weight in regularised.items() if weight > 0]
        told = MinibatchValues("policy_loss", "clip_fraction", "approx_kl", *terms, device=self.device)
        self.policy.optimizer.zero_grad()
        # Of the whole minibatch, whose parts must not be normalised apart.
        parts = rollout.split(self._at_once)
        for part, part_advantages in zip(parts, normalised.split(self._at_once)[: len(parts)], strict=True):
            share = len(part.rows) / rollout.of
            loss, values = self._policy_loss(part, part_advantages)
            self._backward(loss, share, "policy")
            told.add(share, **values)
        norm, found = self._apply(self.policy.optimizer, self.policy.actor_parameters), told.of_all(self.team)
        note(statistics, **found, actor_grad_norm=norm)
        return found["approx_kl"]

    def _policy_loss(self, rollout: DenseRollout, advantages: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The mean loss of some images, and what is told of it.

        Args:
            rollout: The images.
            advantages: `(B, *S)`, normalised.
        """
        log_probs, self._rollout_log_probs = self._rollout_log_probs, None
        if log_probs is None:
            log_probs = self._distribution(rollout.images).log_probs
        log_probs = log_probs.float()
        chosen = log_probs.gather(1, rollout.actions.long()[:, None])[:, 0]
        loss, clip_fraction, approx_kl = clipped_policy_loss(
            chosen, rollout.log_probs.float(), advantages, self.settings.clip_range
        )
        told = {"policy_loss": loss.item(), "clip_fraction": clip_fraction, "approx_kl": approx_kl}
        if rollout.reference_log_probs is not None:
            kl = kl_divergence(log_probs, rollout.reference_log_probs).mean()
            loss = loss + self.settings.kl_coef * kl
            told["kl_reference"] = kl.item()
        if self.settings.ent_coef > 0:
            entropy = pixel_entropy(log_probs).mean()
            loss = loss - self.settings.ent_coef * entropy
            told["entropy"] = entropy.item()
        return loss, told

    def _backward(self, loss: Tensor, share: float, name: str) -> None:
        """Adds the gradients of a part of a minibatch, which has this share of its images."""
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the {name} loss is not finite; lower ppo.learning_rate or look at the images")
        (loss if share == 1 else share * loss).backward()

    def _apply(self, optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> float:
        """One step with the gradients of all processes; returns their norm."""
        self.team.sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        optimiser.step()
        # The fused Adam does not count its writes, and caches of embeddings go by that count.
        torch.autograd.graph.increment_version(parameters)
        return float(norm)
