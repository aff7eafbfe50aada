# PSPNet as in CVNets v0.2. A leaf adds backbone.model_name and output_stride, the channels and the classes.
_base_ = ["deeplabv3_mobilevit.py"]

model = dict(decode_head=dict(type="MobileViTPSPHead", pool_scales=(1, 2, 3, 6)))
