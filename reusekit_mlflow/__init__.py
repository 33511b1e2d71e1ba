"""The plugins MLflow finds by entry points: data sets, models, run context.

MLflow imports its plugins while it is imported itself, in every process of every user of the
environment. So nothing here imports Keras, TensorFlow or reusekit before it is used.
"""

# Before any module of this package: one that is imported first would have MLflow ask for it while
# it is not whole yet, and MLflow would go on without it.
import mlflow  # noqa: F401
