"""The non-local operation, eq. 1 of the paper, for its four pairwise functions.

    y_i = 1 / C(x) * sum_j f(theta_i, phi_j) g_j

Shape shorthand in this module:
    N: batch size
    L: number of query positions i
    M: number of key positions j (fewer than L where keys are sub-sampled)
    D: channels of theta and phi
    E: channels of g

Each kernel is exact and holds at most a part of the (L, M) matrix f; :func:`affinity` alone returns
the matrix itself, for the queries it is asked for.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .parts import softmax_in_parts
from .positions import channels_first
from .recording import is_exported, is_recorded
from .symmetric import symmetric_softmax
from .tiled import tiled_softmax

PAIRWISE_FUNCTIONS = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
# The two whose affinity is a distribution over the keys; the others' are signed or unbounded
DISTRIBUTIONS = ("gaussian", "embedded_gaussian")
FUSED_PAIRS = 2**26  # queries times keys; see softmax_kernel
FLASH_CHANNELS = 256  # more than these, PyTorch's fastest kernels for GPUs do not take


def non_local(
    pairwise: str, theta: Tensor, phi: Tensor, g: Tensor, scale: float, symmetric: bool = False
) -> Tensor:
    """The non-local operation (paper, sec. 3.1 and 3.2).

    Args:
        pairwise: one of :data:`PAIRWISE_FUNCTIONS`.
        theta: queries (N, L, D). Concatenation: the scalars w_theta^T theta(x_i), so D = 1.
        phi: keys (N, M, D). Concatenation: the scalars w_phi^T phi(x_j), so D = 1.
        g: values (N, M, E).
        scale: factor on the logits of the two exponential forms; the other forms ignore it.
        symmetric: phi is theta, whose gradient may then be that of both.

    Returns:
        y, of shape (N, L, E) and of g's dtype.
    """
    if pairwise == "dot_product":
        return dot_product(theta, phi, g)
    if pairwise == "concatenation":
        return concatenation(theta, phi, g)
    if torch.jit.is_scripting():
        return fused_softmax(theta, phi, g, scale)
    return softmax(theta, phi, g, scale, symmetric)


@torch.jit.unused
def softmax(theta: Tensor, phi: Tensor, g: Tensor, scale: float, symmetric: bool = False) -> Tensor:
    """Gaussian and embedded Gaussian: f = exp(scale * theta_i^T phi_j), C(x) = sum_j f (eq. 2, 3).

    In linear memory whichever the kernel.
    """
    kernel = softmax_kernel(theta, phi, g, scale, symmetric)
    if kernel == "symmetric":
        return symmetric_softmax(theta, g, scale)
    if kernel == "tiled":
        return tiled_softmax(theta, phi, g, scale)
    if kernel == "parts":
        return softmax_in_parts(theta, phi, g, scale)
    y = fused_softmax(theta, phi, g, scale)
    if y.requires_grad and not is_recorded():
        # The copy that the kernel's backward pass would make, and hold beside the original
        y.register_hook(lambda gradient: None if gradient is None else gradient.contiguous())
    return y


def softmax_kernel(theta: Tensor, phi: Tensor, g: Tensor, scale: float, symmetric: bool) -> str:
    """Which kernel computes the softmax best: "fused", "parts", "tiled" or "symmetric".

    What is recorded for any size is PyTorch's own function. On GPUs (measured on an H200):

    - Of up to 256 channels in half precision the fused kernel is flash attention, the fastest.
    - Of more, which flash does not take, PyTorch has one that takes five to ten times as long in
      training as a few large products do, and 1.6 in inference: these are :mod:`.parts`.
    - But float16 could not hold logits of many channels that nothing scales. The fused kernels
      have them in single precision.

    On CPUs (measured on one thread and two, with AVX2 and AVX-512, at 25x42 to 50x84, C = 1024):

    - Symmetric logits save the Gaussian without sub-sampling 1.2 to 1.6 of the fused time.
    - Values of other width than the keys, as of a sub-sampled Gaussian, would be padded for the
      fused kernel, which then takes 1.4 to 1.6 times as long as tiles.
    - A block with tiles takes 0.8 to 1.06 of the time that it does with the fused kernel, whose
      backward pass runs samples in parallel and nothing within one, and 0.6 to 0.9 of the memory,
      as the fused one copies operands whose channels are not last. From :data:`FUSED_PAIRS` on,
      as on a res3 of 100x168, it takes 1.04 to 1.2 of the time, and the memory is the same.
    - The other kernels have no logits in single precision, which float16 needs.
    """
    if is_recorded():
        return "fused"
    width = max(theta.shape[2], g.shape[2])
    if theta.device.type != "cpu":
        flash = theta.dtype in (torch.float16, torch.bfloat16) and width <= FLASH_CHANNELS
        unscaled = theta.dtype == torch.float16 and scale >= 1
        return "fused" if flash or unscaled else "parts"
    if theta.dtype == torch.float16:
        return "fused"
    if symmetric:
        return "symmetric"
    if theta.shape[2] != g.shape[2] or theta.dtype == torch.bfloat16:
        return "tiled"
    return "tiled" if theta.shape[1] * phi.shape[1] < FUSED_PAIRS else "fused"


def fused_softmax(theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Tensor:
    """:func:`softmax` by PyTorch's kernels.

    The operands are brought to the one form which these take on CPU and CUDA alike (a contiguous
    last dimension, one head dimension for all three, a multiple of 8). In any other form PyTorch
    silently builds the full (L, M) matrix.
    """
    channels = max(theta.shape[-1], g.shape[-1])
    channels = (channels + 7) // 8 * 8
    # Zero channels add nothing to a logit, and those of y are cut off again.
    y = F.scaled_dot_product_attention(
        _pad_channels(theta, channels).unsqueeze(1),
        _pad_channels(phi, channels).unsqueeze(1),
        _pad_channels(g, channels).unsqueeze(1),
        scale=scale,
    )
    return y.squeeze(1)[..., : g.shape[-1]]


def dot_product(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """Dot product: f = theta_i^T phi_j, C(x) = M (eq. 4).

    No non-linearity stands between the two products, so they are taken in the cheaper order:
    theta (phi^T g), or (theta phi^T) g on maps with fewer positions than channels, whose (L, M)
    matrix is then smaller than the operands. Either way the smaller matrix is what C(x) divides.
    """
    num_queries, num_keys = theta.shape[1], phi.shape[1]
    if is_recorded():
        return torch.matmul(theta, torch.matmul(phi.transpose(1, 2), g / phi.shape[1]))
    divisor = num_keys
    if g.dtype == torch.float16:
        g, divisor = g / num_keys, 1  # sums over positions would leave its range
    channels = theta.shape[-1] * g.shape[-1]
    small_map = num_queries * num_keys * (theta.shape[-1] + g.shape[-1]) < channels * (
        num_queries + num_keys
    )
    if small_map:
        left, right = torch.bmm(theta, phi.transpose(1, 2)).div_(divisor), g
    else:
        left, right = theta, torch.bmm(phi.transpose(1, 2), g).div_(divisor)
    if channels_first(theta):  # and so is y then
        return torch.bmm(right.transpose(1, 2), left.transpose(1, 2)).transpose(1, 2)
    return torch.bmm(left, right)


def concatenation(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """Concatenation: f = ReLU(theta_i + phi_j) with scalars theta_i, phi_j, C(x) = M (eq. 5).

    f is linear in theta_i and phi_j over the keys with phi_j > -theta_i and zero elsewhere, so
    with keys sorted by falling phi_j each y_i reads two prefix sums:

        y_i = 1 / M * (theta_i * sum_{j < k_i} g_j + sum_{j < k_i} phi_j g_j)

    where k_i counts the keys with phi_j > -theta_i. O((L + M) log M + (L + M) E) work, exact.
    """
    if is_exported():  # there is no searchsorted in ONNX
        return torch.matmul(affinity("concatenation", theta, phi, 1.0), g)
    dtype = g.dtype
    # Prefix sums over thousands of positions need more than half precision.
    if dtype != torch.float64:
        theta, phi, g = theta.float(), phi.float(), g.float()
    # An offset can move from phi to theta: f depends on their sum. Small numbers cancel less.
    offset = phi.mean(dim=1, keepdim=True)
    theta, phi = theta + offset, phi - offset
    negative_phi, order = torch.sort(-phi.squeeze(-1), dim=1)  # (N, M) rising, so phi is falling
    g = g.gather(1, order.unsqueeze(-1).expand_as(g)) / phi.shape[1]
    terms = torch.cat([g, -negative_phi.unsqueeze(-1) * g], dim=-1)  # (N, M, 2E)
    prefix_sums = F.pad(terms.cumsum(dim=1), [0, 0, 1, 0])  # (N, M + 1, 2E), entry k sums k keys
    counts = torch.searchsorted(negative_phi.detach(), theta.detach().squeeze(-1))  # (N, L)
    sums = prefix_sums.gather(1, counts.unsqueeze(-1).expand(-1, -1, terms.shape[-1]))
    sum_g, sum_phi_g = sums.chunk(2, dim=-1)  # (N, L, E) each
    return torch.addcmul(sum_phi_g, theta, sum_g).to(dtype)


def affinity(pairwise: str, theta: Tensor, phi: Tensor, scale: float) -> Tensor:
    """The matrix f(theta_i, phi_j) / C(x), (N, L, M), that :func:`non_local` never holds."""
    if pairwise == "concatenation":
        return F.relu(theta + phi.transpose(1, 2)) / phi.shape[1]
    logits = torch.bmm(theta, phi.transpose(1, 2))
    if pairwise == "dot_product":
        return logits / phi.shape[1]
    return torch.softmax(logits * scale, dim=-1)


def _pad_channels(x: Tensor, channels: int) -> Tensor:
    """x (N, L, D) with zeros up to (N, L, channels), its last dimension contiguous."""
    if x.shape[-1] != channels:
        return F.pad(x, [0, channels - x.shape[-1]])
    return x if x.stride(-1) == 1 else x.contiguous()
