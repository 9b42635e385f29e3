"""A folder of your own, in any of the formats that `vitadapter.data.folders` reads."""

folder = dict(
    # Sets all that the data set config says of files and classes.
    root=None,
    # Files and folders of it to leave out, such as "*.xml".
    exclude=[],
    # Images without a label file: "empty" if they show no object, "skip" to leave them out.
    unlabelled=None,
    # For evaluation, where the folder has no split for it. Files for which the regular expression
    # `group` finds the same text stay together.
    split=dict(fraction=0.2, seed=0, group=None),
    # Whether to look for what would make training wrong.
    check=True,
)
