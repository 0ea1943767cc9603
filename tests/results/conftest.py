import json

import pytest


@pytest.fixture
def plant_run():
    """plant_run(folder, base, new, ...): the result.json files of one seed in base-to-new, both of them."""

    def plant(folder, base, new, seed=1, trainer="SkipTuning", dataset="emoji", config="embedded", **costs):
        files = []
        for part, subsample, accuracy in (("train_base", "base", base), ("test_new", "new", new)):
            place = folder / f"base2new/{part}/{dataset}/shots_5/{trainer}/{config}/seed{seed}"
            place.mkdir(parents=True)
            record = {
                **{"trainer": trainer, "dataset": dataset, "subsample": subsample, "shots": 5, "seed": seed},
                **{"backbone": "ViT-XS/16-icons", "config": config, "accuracy": accuracy, "macro_f1": accuracy},
                **{"seconds": {"extract": 2.0, "train": costs.get("train", 10.0), "test": 1.0}},
                **{"peak_memory_mb": costs.get("memory", 100.0), "learned_parameters": costs.get("learned", 0)},
            }
            files.append(place / "result.json")
            files[-1].write_text(json.dumps(record))
        return files

    return plant
