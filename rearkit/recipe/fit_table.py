"""``[tokenizer.fit]`` and the tables in it: how a tokenizer is fitted."""

from __future__ import annotations

from rearkit.recipe.settings import setting, settings


@settings
class PerceptualTable:
    """``[tokenizer.fit.perceptual]``: a distance between images in a network's features."""

    weight: float = setting("of the distance in the loss", default=1.0, gt=0)
    features: str = setting(
        "whose: a classifier's, trained on this run's images with seed and steps of its own; or VGG's by LPIPS",
        default="classifier",
        choices=("classifier", "lpips"),
    )
    vgg_weights: str | None = setting("file of torchvision's VGG-16 weights, for lpips", default=None)
    steps: int = setting("optimizer steps of the classifier", default=600, ge=1)

    def __attrs_post_init__(self) -> None:
        if (self.features == "lpips") != (self.vgg_weights is not None):
            raise ValueError('features = "lpips" and vgg_weights = "FILE" need each other')


@settings
class AdversarialTable:
    """``[tokenizer.fit.adversarial]``: a patch discriminator with the hinge loss (VQGAN, Esser et al. 2021)."""

    weight: float = setting("of the adversarial term in the loss", default=0.5, gt=0)
    adaptive: bool = setting(
        "multiply the weight by the ratio of both terms' gradients in the decoder's last weights", default=True
    )
    start: int = setting("step from which it takes part", default=0, ge=0)
    lr: float = setting("peak learning rate of the discriminator", default=2e-4, gt=0)
    channels: int = setting("channels of its first convolution, a multiple of 8", default=64, ge=8)
    layers: int = setting("convolutions that halve the side; more make the patches larger", default=3, ge=1, le=6)
    r1: float = setting("weight of the R1 penalty; 0: none", default=0.0, ge=0)
    lecam: float = setting("weight of the LeCam regularizer; 0: none", default=0.0, ge=0)
    max_skipped_steps: int = setting(
        "its steps skipped for a NaN or infinite gradient, since the start or the resume; one more stops the fit",
        default=20,
        ge=0,
        since="0.2.0",
        cosmetic=True,
    )

    def __attrs_post_init__(self) -> None:
        if self.channels % 8:
            raise ValueError(f"channels ({self.channels}) must be a multiple of 8, the groups of its norms")


@settings
class FitTable:
    """``[tokenizer.fit]``: fit the tokenizer on the training images."""

    steps: int = setting("optimizer steps", default=1000, ge=1)
    batch: int = setting("images a step", default=64, ge=1)
    lr: float = setting("peak learning rate; cosine to a twentieth", default=2e-3, gt=0)
    warmup_steps: int = setting("steps of linear warm-up", default=50, ge=0)
    weight_decay: float = setting("AdamW weight decay", default=1e-4, ge=0)
    min_psnr: float = setting(
        "stop with an error below this PSNR on held-out images, else training images, dB", default=0.0, ge=0, floor=True
    )
    checkpoint_every: int = setting("steps between checkpoints of the fit", default=200, ge=1, cosmetic=True)
    part: str = setting(
        "what is fitted; decoder: encoder and codebook, and so all tokens, stay as the weights have them",
        default="all",
        choices=("all", "decoder"),
        since="0.2.0",
    )
    flip: bool = setting("mirror every second image, at random", default=False, since="0.2.0")
    shift: int = setting("move each image by up to so many pixels, at random", default=0, ge=0, since="0.2.0")
    ema_decay: float = setting(
        "keep an average of the weights, and take it in the end: decay at most, (1+n)/(10+n) at step n; 0: none",
        default=0.0,
        ge=0,
        lt=1,
        since="0.2.0",
    )
    precision: str = setting("arithmetic; bf16: by autocast", default="fp32", choices=("fp32", "bf16"), since="0.2.0")
    perceptual: PerceptualTable | None = setting("add a perceptual distance", default=None, since="0.2.0")
    adversarial: AdversarialTable | None = setting("add a discriminator", default=None, since="0.2.0")

    def __attrs_post_init__(self) -> None:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps})")
        if self.adversarial is not None and self.adversarial.start >= self.steps:
            raise ValueError(f"adversarial.start ({self.adversarial.start}) must be below steps ({self.steps})")
