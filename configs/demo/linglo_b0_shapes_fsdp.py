# Weights, gradients and optimizer state sharded over the processes, block by block:
# `tools/dist_train.sh configs/demo/linglo_b0_shapes_fsdp.py 2`.
_base_ = './linglo_b0_shapes.py'
runner_type = 'FlexibleRunner'
strategy = dict(type='mmvitattn.ShardedStrategy', units=['LinGloBlock'])
