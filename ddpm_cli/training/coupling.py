"""Which noise goes with which image of a batch: by chance, or so that what is mixed lies close together."""

import torch
from torch import Tensor


def assigned(noise: Tensor, x_0: Tensor, labels: Tensor | None = None) -> Tensor:
    """The rows of noise (B, ...) in the order in which the sum of |x_0 - noise|² over the batch is least.

    Minibatch optimal transport (Pooladian et al. 2023; Tong et al. 2023), which Li et al. 2024 call immiscible
    diffusion. labels: (B,), what the network is told of each image; then noise is exchanged within a class only, so
    that of each class, too, it stays standard normal, which is what a class is drawn from. Of equal squares for every
    order, |x_0|² and |noise|², the sum leaves -2 x_0 · noise.
    """
    from scipy.optimize import linear_sum_assignment  # here: to import it takes longer than the other modules do

    likeness = (x_0.flatten(1) @ noise.flatten(1).T).double().cpu()  # (image, noise)
    order = torch.arange(len(noise))
    groups = torch.zeros(len(noise), dtype=torch.long) if labels is None else labels.cpu()
    for group in groups.unique():
        rows = (groups == group).nonzero().flatten()
        _, columns = linear_sum_assignment(likeness[rows][:, rows].numpy(), maximize=True)
        order[rows] = rows[torch.from_numpy(columns)]
    return noise[order.to(noise.device)]
