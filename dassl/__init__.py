"""The part of Dassl's API that the CoOp family uses, on current PyTorch: upstream's import paths, names and log lines.

Our own engine stands beside it: engine/checkpoint.py (resume), engine/result.py (result.json), engine/memory.py,
config/ranges.py, data/transforms/fast.py, and in utils/ archives, command, download, files, images, lock and reading.

Promises that nothing here needs, and who needs them. "Release" is Skip Tuning's released code.

    TrainerBase.model_backward_and_update                      trainers of 15 forks
    TrainerBase.prograd_backward_and_update                    KgCoOp, ProGrad, TCP, release
    TrainerXU, SimpleNet, modeling/ (can't be called)          release, which only imports them
    data/samplers.py: domain and class samplers                release
    DatasetBase.generate_fewshot_dataset                       every fork's datasets
    DataManager: custom_tfm_train, custom_tfm_test             users of Dassl, by argument
    DataManager, build_data_loader: dataset_wrapper            clip-openness
    DATALOADER.TRAIN_X.N_DOMAIN, N_INS                         the same samplers
    optim/radam.py                                             DePT, release
    OPTIM.STAGED_LR, NEW_LAYERS, BASE_LR_MULT                  DePT, release
    OPTIM.ADAM_BETA1, ADAM_BETA2, RMSPROP_ALPHA                DePT's and the release's own optimizers
    OPTIM.WARMUP_MIN_LR, WARMUP_RECOUNT, STEPSIZE, GAMMA       every fork's schedulers, by option
    MODEL.INIT_WEIGHTS                                         read by the trainers of 16 forks
    MODEL.HEAD.NAME, DATASET.SOURCE_DOMAINS, TARGET_DOMAINS    set by every fork's train.py
    MODEL.BACKBONE.PRETRAINED                                  release
    DATALOADER.K_TRANSFORMS, RETURN_IMG0, INPUT.NO_TRANSFORM   users of CoOp, by option
    transforms beside crop, flip and normalize                 users of CoOp, by option
    config.clean_cfg                                           DePT, release
    utils.setup_logger                                         train.py of 17 forks
    utils.check_isfile                                         parse_test_res.py of 9 forks
    utils.load_pretrained_weights                              every fork's trainers
    utils.count_num_param, resume_from_checkpoint              release
    utils.save_checkpoint, tolist_if_not                       release
    utils.check_availability, get_most_similar_str_to_a_from_b forks with registries of their own

Left out, because it is not small: datasets and trainers for domain adaptation, domain generalisation and
semi-supervised learning (data/datasets/{da,dg,ssl}, engine/{da,dg,ssl}), networks (modeling/backbone, modeling/ops) and
automatic augmentation (data/transforms/{autoaugment,randaugment}).
"""

__version__ = "0.6.3"  # the upstream release whose behaviour is kept
