"""The resident model and its turns. Whoever needs it needs transformers, all of it at once."""

from sst_ui.quick_import import quick_import

with quick_import():
    import transformers.modeling_utils
    import transformers.models.auto.modeling_auto  # noqa: F401
