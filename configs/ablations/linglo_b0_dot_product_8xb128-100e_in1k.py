_base_ = './linglo_b0_8xb128-100e_in1k.py'
model = dict(backbone=dict(attention='dot_product'))
