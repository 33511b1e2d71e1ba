# %% [markdown]
# # Text, from a CSV to a served label
#
# A column of texts and a column of labels. Here the table is made: short reviews.

# %%
import numpy as np
import pandas as pd

numbers = np.random.default_rng(0)
good = numbers.integers(0, 2, 160)
words = [
    ["error", "missing", "fails", "broken", "invalid"],
    ["returns", "simple", "fast", "clear", "useful"],
]
texts = [
    f"A {' '.join(numbers.choice(words[one], 3))} function, {n}." for n, one in enumerate(good)
]
reviews = pd.DataFrame({"text": texts, "verdict": np.array(["complaint", "praise"])[good]})
reviews.to_csv("reviews.csv", index=False)
reviews.head()

# %% [markdown]
# ## The pipeline
#
# The backbone *prosenet*, a small transformer that ships with reusekit, brings its tokenizer. The label
# column decides the task: words are classes. `reusekit init shop` lays the pipelines into a folder of yours. A configuration of a few lines is
# enough; what is not said has a default.

# %%
from pathlib import Path

from reusekit.cli import init

init("shop")
_ = Path("reviews.yaml").write_text("""
data: {table: reviews.csv, input: text, label: verdict, sequence_length: 16}
backbone: {source: reusekit/prosenet}
search: {max_trials: 2, max_cuts: 2, epochs: 6, store: features}
finetune: {epochs: 1}
baselines: {linear: true}
tracking: {uri: "sqlite:///mlflow.db", experiment: reviews, model: reviews}
standalone: true
""")

# %% [markdown]
# In a shell it is `python shop/pipelines/cut_search.py --config reviews.yaml`. A notebook calls the same
# function, which says how far it is:

# %%
import runpy

from reusekit.launch import launch

pipeline = runpy.run_path("shop/pipelines/cut_search.py")
launch(pipeline["cut_search"], ["--config", "reviews.yaml"])

# %% [markdown]
# ## Ask the registered model
#
# It takes strings: the tokenizer is a layer of it. `mlflow.pyfunc` answers as a server would.

# %%
import mlflow

mlflow.set_tracking_uri("sqlite:///mlflow.db")
served = mlflow.pyfunc.load_model("models:/reviews@champion")
served.predict(pd.DataFrame({"text": ["A fast and useful function.", "An invalid, missing one."]}))

# %% [markdown]
# ## Serve it
#
# ```shell
# export MLFLOW_TRACKING_URI=sqlite:///mlflow.db
# mlflow models serve -m models:/reviews@champion --env-manager local --port 5001
# curl localhost:5001/invocations -H 'Content-Type: application/json' \
#   -d '{"dataframe_records": [{"text": "A fast and useful function."}]}'
# {"predictions": [{"label": "praise", "probability": 0.98}]}
# ```
#
# The column is called as in your table, here `text`. `mlflow` is that of the environment in which reusekit is.
#
# A later version becomes champion only by `promote`, which compares both on the test part; `rollback`
# goes back. See [Find it in MLflow](../tracking.md).
