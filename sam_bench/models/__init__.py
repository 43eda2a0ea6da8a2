"""Networks for small images. Each is a function of `num_classes` and `in_chans`, named in conf/model/."""
