_base_ = '../qna_vit_tiny_8xb128_in1k.py'
model = dict(
    neck=dict(
        _delete_=True,
        type='mmvitattn.QnAPooling',
        in_channels=512,
        num_heads=64,
        map_size=7,  # of an image of 224 x 224
    ),
)
