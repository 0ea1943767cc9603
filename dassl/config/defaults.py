"""Every option of the engine and its default. Trainers add their own node under TRAINER (extend_cfg)."""

import os

from .config import Config as CN

_C = CN()
_C.OUTPUT_DIR = "./output"
_C.RESUME = ""  # look for something to resume here instead of in OUTPUT_DIR
_C.SEED = -1  # negative: no fixed seed
_C.USE_CUDA = True  # if there is one
_C.VERBOSE = True
_C.PROTOCOL = ""  # what the run is part of: base2new, few_shot, xd or nothing
_C.PRESET = ""  # name of the set of choices that the configuration files make: recommended, paper, matched, ...
_C.TRIALS = -1  # settings that were tried on validation images to find this recipe; -1: not said
_C.OVERRIDES = CN(new_allowed=True)  # other values for "EuroSAT", "4shots", "few_shot", "EuroSAT+4shots" (`resolve`)

_C.INPUT = CN()
_C.INPUT.SIZE = (224, 224)  # height, width in pixels
_C.INPUT.INTERPOLATION = "bilinear"
_C.INPUT.RESIZE = "shortest"  # of test images: the shorter side, then a centre crop; or squash, both sides to SIZE
_C.INPUT.TRANSFORMS = ()
_C.INPUT.NO_TRANSFORM = False
_C.INPUT.EXIF_TRANSPOSE = False  # turn images as their EXIF orientation says; CoOp does not
_C.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406]
_C.INPUT.PIXEL_STD = [0.229, 0.224, 0.225]
_C.INPUT.RRCROP_SCALE = (0.08, 1.0)  # random_resized_crop: share of the area
_C.INPUT.COLORJITTER_B = 0.4  # brightness, contrast, saturation, hue
_C.INPUT.COLORJITTER_C = 0.4
_C.INPUT.COLORJITTER_S = 0.4
_C.INPUT.COLORJITTER_H = 0.1
_C.INPUT.RGS_P = 0.2  # randomgrayscale: probability
_C.INPUT.GB_P = 0.5  # gaussian_blur: probability, kernel size in pixels
_C.INPUT.GB_K = 21
_C.INPUT.RANDAUGMENT_N = 2  # randaugment: random operations on an image, and their strength, 0 to 30
_C.INPUT.RANDAUGMENT_M = 10

_C.DATASET = CN()
_C.DATASET.ROOT = ""
_C.DATASET.NAME = ""
_C.DATASET.SOURCE_DOMAINS = ()
_C.DATASET.TARGET_DOMAINS = ()
_C.DATASET.NUM_SHOTS = -1  # training images per class; below 1: all

_C.DATALOADER = CN()
_C.DATALOADER.NUM_WORKERS = min(4, os.cpu_count() or 1)
_C.DATALOADER.K_TRANSFORMS = 1  # augmented copies of each training image
_C.DATALOADER.RETURN_IMG0 = False  # the image without augmentation as well
_C.DATALOADER.DECODED_MB = 1000  # of training images that stay decoded in memory, shared by the workers; 0: none
_C.DATALOADER.TRAIN_X = CN()
_C.DATALOADER.TRAIN_X.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_X.BATCH_SIZE = 32
_C.DATALOADER.TRAIN_X.N_DOMAIN = 0  # domains in a batch (domain samplers)
_C.DATALOADER.TRAIN_X.N_INS = 16  # images per class in a batch (RandomClassSampler)
_C.DATALOADER.TEST = CN()
_C.DATALOADER.TEST.SAMPLER = "SequentialSampler"
_C.DATALOADER.TEST.BATCH_SIZE = 32

_C.MODEL = CN()
_C.MODEL.INIT_WEIGHTS = ""
_C.MODEL.RECIPE = ""  # if set, only the rows of OVERRIDES that name it hold: embedded
_C.MODEL.BACKBONE = CN()
_C.MODEL.BACKBONE.NAME = ""
_C.MODEL.BACKBONE.PRETRAINED = True
# Facts of a CLIP in a bare file, which its weights don't show; empty: as the file or its configuration says.
_C.MODEL.BACKBONE.LIKE = ""  # a model with the same facts, such as ViT-B/16
_C.MODEL.BACKBONE.ACTIVATION = ""  # quick_gelu or gelu
_C.MODEL.BACKBONE.VISION_HEADS = 0
_C.MODEL.BACKBONE.TEXT_HEADS = 0
_C.MODEL.BACKBONE.MEAN = ()  # of the pixels
_C.MODEL.BACKBONE.STD = ()
_C.MODEL.HEAD = CN()
_C.MODEL.HEAD.NAME = ""

_C.OPTIM = CN()
_C.OPTIM.NAME = "adam"
_C.OPTIM.LR = 0.0003
_C.OPTIM.WEIGHT_DECAY = 5e-4
_C.OPTIM.MOMENTUM = 0.9
_C.OPTIM.SGD_DAMPNING = 0.0  # upstream's spelling
_C.OPTIM.SGD_NESTEROV = False
_C.OPTIM.RMSPROP_ALPHA = 0.99
_C.OPTIM.ADAM_BETA1 = 0.9
_C.OPTIM.ADAM_BETA2 = 0.999
_C.OPTIM.STAGED_LR = False  # children not in NEW_LAYERS learn with LR * BASE_LR_MULT
_C.OPTIM.NEW_LAYERS = ()
_C.OPTIM.BASE_LR_MULT = 0.1
_C.OPTIM.LR_SCHEDULER = "single_step"
_C.OPTIM.STEPSIZE = (-1,)  # epochs; single_step: below 1 means MAX_EPOCH
_C.OPTIM.GAMMA = 0.1
_C.OPTIM.MAX_EPOCH = 10
# Above 0: MAX_EPOCH becomes the whole epochs that hold so many steps for each shot. All images count as their mean
# number in a class.
_C.OPTIM.STEPS_PER_SHOT = 0
_C.OPTIM.WARMUP_EPOCH = -1
_C.OPTIM.WARMUP_TYPE = "linear"
_C.OPTIM.WARMUP_CONS_LR = 1e-5
_C.OPTIM.WARMUP_MIN_LR = 1e-5
_C.OPTIM.WARMUP_RECOUNT = True  # the schedule behind the warm-up starts at its own epoch 0

_C.TRAIN = CN()
_C.TRAIN.CHECKPOINT_FREQ = 0  # epochs; below 1: only the last
_C.TRAIN.PRINT_FREQ = 10  # batches
_C.TRAIN.CPU_PREC = "auto"  # what PREC auto means on a CPU: fp32 or bf16; auto: bf16 where its products are native
_C.TRAIN.STEP_IN_BACKWARD = True  # weights are updated within the backward pass where that is exact; False keeps .grad
_C.TRAIN.MEASURE_MEMORY = False  # on a CPU, count all living tensors in the first two steps (slow); CUDA always tells

_C.TEST = CN()
_C.TEST.EVALUATOR = "Classification"
_C.TEST.PER_CLASS_RESULT = False
_C.TEST.COMPUTE_CMAT = False
_C.TEST.NO_TEST = False
_C.TEST.SPLIT = "test"
_C.TEST.FINAL_MODEL = "last_step"  # or best_val
_C.TEST.TEMPERATURE = ""  # calibration also of logits / T: a number, or "auto", the best on the validation images
_C.TEST.SAVE_LOGITS = False  # logits of all the dataset's classes into OUTPUT_DIR, for what parse_test_res.py joins

_C.TRAINER = CN()
_C.TRAINER.NAME = ""
