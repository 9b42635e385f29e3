"""What the nets of the paper's sizes have in common.

Drop path is that of the paper. Attention is in windows of 14 tokens but for every third (large:
sixth) block, which bounds memory and time on large images; segmenters attend globally.
"""

base = dict(
    embed_dim=768,
    depth=12,
    num_heads=12,
    drop_path_rate=0.3,
    window_size=14,
    window_block_indexes=[i for i in range(12) if i % 3 != 2],
)
# What base becomes these with:
tiny = dict(embed_dim=192, num_heads=3, drop_path_rate=0.1)
small = dict(embed_dim=384, num_heads=6, drop_path_rate=0.2)
large = dict(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    drop_path_rate=0.4,
    window_block_indexes=[i for i in range(24) if i % 6 != 5],
)
all_global = dict(window_size=0, window_block_indexes=[])
