"""Ridge regression: a number that grows along a direction of the features."""

from pydantic import BaseModel, ConfigDict, Field


class Params(BaseModel):
    """Settings of ridge regression."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    penalty: float = Field(100.0, gt=0, description="alpha of scikit-learn: larger is smoother.")


def build(params):
    """Build the pipeline: median for gaps, standard scaling, L2-penalized linear regression.

    Parameters
    ----------
    params : Params

    Returns
    -------
    sklearn.pipeline.Pipeline
        Not fitted.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    imputer = SimpleImputer(strategy="median", keep_empty_features=True)
    return Pipeline(
        [("imputer", imputer), ("scaler", StandardScaler()), ("estimator", Ridge(params.penalty, solver="cholesky"))]
    )
