"""Vision transformers for small images: timm's ViT-tiny and ViT-small with patches of 4 x 4 pixels.

Dosovitskiy et al.: An Image is Worth 16x16 Words, arXiv 2010.11929.
"""

from typing import Any

from timm.models.vision_transformer import VisionTransformer


def vit_tiny(
    num_classes: int = 10, in_chans: int = 3, img_size: int = 32, patch_size: int = 4, **kwargs: Any
) -> VisionTransformer:
    """ViT-tiny at patch 4, 5.4 M parameters."""
    return VisionTransformer(
        img_size, patch_size, in_chans, num_classes, embed_dim=192, depth=12, num_heads=3, **kwargs
    )


def vit_small(
    num_classes: int = 10, in_chans: int = 3, img_size: int = 32, patch_size: int = 4, **kwargs: Any
) -> VisionTransformer:
    """ViT-small at patch 4, 21.3 M parameters."""
    return VisionTransformer(
        img_size, patch_size, in_chans, num_classes, embed_dim=384, depth=12, num_heads=6, **kwargs
    )
