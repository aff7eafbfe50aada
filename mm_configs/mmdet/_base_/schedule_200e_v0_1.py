# As the schedule of v0.2, with a smaller decay. (v0.1 kept the checkpoint of the lowest validation loss; mmdet does not
# measure that, so the best is chosen by mAP.)
_base_ = ["schedule_200e.py"]

optim_wrapper = dict(optimizer=dict(weight_decay=0.01))
