__all__ = ["compute_accuracy"]


def compute_accuracy(output, target, topk=(1,)):
    """Top-k accuracies in percent, each a tensor of shape (1,).

    output: scores (B, C), or a tuple or list whose first entry they are; target: labels (B,).
    """
    scores = output[0] if isinstance(output, tuple | list) else output
    ranked = scores.topk(max(topk), dim=1).indices  # (B, max k)
    hits = ranked == target.view(-1, 1)
    return [100.0 * hits[:, :k].any(1).float().mean().view(1) for k in topk]
