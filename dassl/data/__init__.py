from .data_manager import ClassNames, DataManager, DatasetWrapper

__all__ = ["ClassNames", "DataManager", "DatasetWrapper"]
