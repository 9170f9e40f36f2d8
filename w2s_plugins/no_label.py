"""What stands where a class would, where there is none: the same in all of the package, from tables to batches."""

# Nobody says what class it is, or what somebody says is none: images without labels, samples that no row of a table is
# about, texts that mean no class. A number, because labels travel as tensors; it is written to no file.
NO_LABEL = -1

# There is no image: a black one stands in its place (`data.unreadable.Blanked`). That is something else: images without
# labels that can be read are in the same batches, and only those that cannot be read have no answer.
UNREADABLE = -(2**31)

# Data without labels, in records and fingerprints: what stands for the name of the dataset and of its split.
NAME_OF_UNLABELED = "unlabeled"
