"""Data: what Detectron2 lacks, from the sample data set on."""
