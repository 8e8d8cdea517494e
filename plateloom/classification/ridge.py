"""Ridge regression: a number that grows along a direction of the features."""

from pydantic import BaseModel, ConfigDict, Field


class Params(BaseModel):
    """Settings of ridge regression."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    penalty: float = Field(100.0, gt=0, description="alpha of scikit-learn: larger is smoother.")


def build(params):
    """Build the estimator: L2-penalized linear regression."""
    from sklearn.linear_model import Ridge

    return Ridge(params.penalty, solver="cholesky")
