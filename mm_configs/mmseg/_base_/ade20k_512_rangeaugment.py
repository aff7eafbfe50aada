# ADE20K under RangeAugment (arXiv:2212.10553): sizes, crops and flips only. Its learned brightness, contrast and noise
# are not in mmseg.
_base_ = ["ade20k_512.py"]

train_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    # The shorter side to any of 256…768, or less if the longer one would exceed 1024.
    dict(
        type="RandomResize",
        scale=[(1024, 256), (1024, 768)],
        keep_ratio=True,
        backend="pillow",
        interpolation="bicubic",
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="Pad", size=(512, 512)),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
