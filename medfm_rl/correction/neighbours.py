"""Correction of a frame by its neighbours in the clip: temporal smoothing, which the verifier has to accept."""

from __future__ import annotations

import torch
from torch import Tensor

from medfm_rl.adapters.grid import Sample
from medfm_rl.anatomy.cleaning import clean_up
from medfm_rl.correction.corrector import CaseCorrector, Neighbour, Original, Proposal
from medfm_rl.data.clips.motion import mean_with_neighbours
from medfm_rl.networks import log_of, one_hot
from medfm_rl.types import FloatArray


class NeighbourVote(CaseCorrector):
    """Averages the segmenter's probabilities with what the neighbours say, carried along by the images' motion.

    A mask that is in doubt says nothing: in its place, and in that of the mask that is to be corrected, the segmenter
    does. One that segments whole clips makes no such mask of a frame by itself, and there every mask has its say. What
    the rules say of parts and holes is done to the average. An image that is no frame of a clip has no neighbours, and
    nothing is proposed.

    Args:
        adapter: The deployed segmenter, of two dimensions.
        verifier: Decides.
    """

    @torch.no_grad()
    def propose(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        """The average."""
        del deadline
        if not original.neighbours:
            return Proposal(original.labels)
        told = [(*self._said_by(neighbour), neighbour.weight) for neighbour in original.neighbours]
        certain = self.adapter.segments_clips
        own = one_hot(original.action, len(logits), dim=0) if certain else logits.float().softmax(dim=0)
        mean = torch.from_numpy(mean_with_neighbours(own.numpy(), sample.image[0].cpu().numpy(), told))
        labels = clean_up(self.adapter.restore(log_of(mean), sample), self.verifier.anatomy)
        return Proposal(labels, views=len(original.neighbours))

    def _said_by(self, neighbour: Neighbour) -> tuple[FloatArray, FloatArray]:
        """Grey values `(H', W')` of a neighbour on the segmenter's grid, and its maps of the classes `(K, H', W')`."""
        if neighbour.labels is None:
            sample = self.adapter.preprocess(neighbour.case)
            maps = self.adapter.predict_logits(sample).float().softmax(dim=0)
        else:
            sample = self.adapter.preprocess_frame(neighbour.case, neighbour.labels)
            action = self.adapter.preprocess_labels(neighbour.labels, sample)
            maps = one_hot(action, self.adapter.schema.num_classes, dim=0)
        return sample.image[0].cpu().numpy(), maps.cpu().numpy()
