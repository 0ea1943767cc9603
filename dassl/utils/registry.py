from .errors import UnknownName, UserError
from .tools import nearest


class DuplicateName(UserError, KeyError):
    """Two objects want the same name in one registry."""


class Registry:
    """Names to classes or functions: `@REGISTRY.register()` above a class, `REGISTRY.get(name)` later."""

    def __init__(self, name):
        self._name = name
        self._objects = {}

    def register(self, obj=None, force=False):
        if obj is None:
            return lambda decorated: self.register(decorated, force) or decorated
        name = obj.__name__
        if name in self._objects and not force:
            raise DuplicateName(f'An object named "{name}" was already registered in "{self._name}" registry')
        self._objects[name] = obj

    def get(self, name):
        if name not in self._objects:
            known = ", ".join(self._objects) or "nothing"
            meant = f' (do you mean "{nearest(name, self._objects)}"?)' if self._objects else ""
            raise UnknownName(f'No "{name}" in the {self._name} registry{meant}; it has {known}')
        return self._objects[name]

    def registered_names(self):
        return list(self._objects)
