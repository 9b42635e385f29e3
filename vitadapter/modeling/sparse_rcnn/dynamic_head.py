"""Dynamic instance interactive head of Sparse R-CNN (paper section 3.2, figure 4)."""

import math

from torch import Tensor, nn

__all__ = ["DynamicConv", "DynamicHead"]


class DynamicConv(nn.Module):
    """Filters each region's feature with two 1x1 convolutions computed from its proposal.

    Args:
        feature_dim: channels of proposals and regions.
        hidden_dim: channels between the two convolutions.
        pooler_size: height and width of a region's features.
    """

    def __init__(self, feature_dim: int = 256, hidden_dim: int = 64, pooler_size: int = 7) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.hidden_dim = hidden_dim
        self.dynamic_layer = nn.Linear(feature_dim, 2 * feature_dim * hidden_dim)
        self.norm_in = nn.LayerNorm(hidden_dim)
        self.norm_out = nn.LayerNorm(feature_dim)
        self.fc_layer = nn.Linear(feature_dim * pooler_size**2, feature_dim)
        self.fc_norm = nn.LayerNorm(feature_dim)
        self.activation = nn.ReLU()

    def forward(self, proposals: Tensor, regions: Tensor) -> Tensor:
        """
        Args:
            proposals: (n, feature_dim).
            regions: (n, feature_dim, pooler_size, pooler_size).

        Returns:
            (n, feature_dim).
        """
        first, second = self.dynamic_layer(proposals).chunk(2, dim=1)
        first = first.view(-1, self.feature_dim, self.hidden_dim)
        second = second.view(-1, self.hidden_dim, self.feature_dim)
        x = regions.flatten(2).transpose(1, 2)  # (n, pixels, feature_dim)
        x = self.activation(self.norm_in(x @ first))
        x = self.activation(self.norm_out(x @ second))
        return self.activation(self.fc_norm(self.fc_layer(x.flatten(1))))


def _fully_connected(feature_dim: int, number: int) -> nn.Sequential:
    layers = [
        layer
        for _ in range(number)
        for layer in (
            nn.Linear(feature_dim, feature_dim, bias=False),
            nn.LayerNorm(feature_dim),
            nn.ReLU(),
        )
    ]
    return nn.Sequential(*layers)


class DynamicHead(nn.Module):
    """One stage: proposals attend to each other, see their regions, and predict class and box.

    Args:
        num_classes: number of foreground classes.
        feature_dim: channels of proposals and regions.
        num_heads: attention heads of the self-attention.
        feedforward_dim: hidden width of the feed-forward network.
        dynamic_dim: hidden width of the dynamic convolution.
        num_cls_fcs, num_reg_fcs: number of layers before the class and the box prediction.
        pooler_size: height and width of a region's features.
        prior_prob: the initial class scores.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        feature_dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        dynamic_dim: int = 64,
        num_cls_fcs: int = 1,
        num_reg_fcs: int = 3,
        pooler_size: int = 7,
        prior_prob: float = 0.01,
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(feature_dim, num_heads, batch_first=True)
        self.attention_norm = nn.LayerNorm(feature_dim)
        self.instance_interactive_conv = DynamicConv(feature_dim, dynamic_dim, pooler_size)
        self.instance_interactive_conv_norm = nn.LayerNorm(feature_dim)
        self.ffn = nn.Sequential(
            nn.Linear(feature_dim, feedforward_dim),
            nn.ReLU(),
            nn.Linear(feedforward_dim, feature_dim),
        )
        self.ffn_norm = nn.LayerNorm(feature_dim)
        self.cls_fcs = _fully_connected(feature_dim, num_cls_fcs)
        self.reg_fcs = _fully_connected(feature_dim, num_reg_fcs)
        self.fc_cls = nn.Linear(feature_dim, num_classes)
        self.fc_reg = nn.Linear(feature_dim, 4)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(self.fc_cls.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, proposals: Tensor, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            proposals: (B, P, feature_dim), of the stage before.
            regions: (B * P, feature_dim, pooler_size, pooler_size).

        Returns:
            Class logits (B, P, K), box deltas (B, P, 4) and the proposals (B, P, feature_dim) for
            the next stage.
        """
        attended, _ = self.attention(proposals, proposals, proposals, need_weights=False)
        proposals = self.attention_norm(proposals + attended)
        interacted = self.instance_interactive_conv(proposals.flatten(0, 1), regions)
        proposals = self.instance_interactive_conv_norm(proposals + interacted.view_as(proposals))
        proposals = self.ffn_norm(proposals + self.ffn(proposals))
        logits = self.fc_cls(self.cls_fcs(proposals))
        deltas = self.fc_reg(self.reg_fcs(proposals))
        return logits.float(), deltas.float(), proposals
