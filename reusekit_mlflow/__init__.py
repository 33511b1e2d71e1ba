"""What MLflow finds of reusekit by entry points alone: data sets, and where a run was made.

MLflow imports its plugins while it is imported itself, in every process of every user of the
environment. So nothing here imports Keras, TensorFlow or reusekit before it is used.
"""
