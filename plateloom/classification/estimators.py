"""Estimators that scikit-learn lacks: a linear SVM and nearest neighbors that state probabilities and heed unequal classes."""

import numpy as np
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC


class MarginSVM(LinearSVC):
    """A linear support vector machine whose margins are read as probabilities.

    Raw ones: a logistic function of the margin between two classes, a softmax of those among more. How sure they may be is
    learned afterwards, from groups held out (`plateloom.classification.calibration`), not by splitting cells as `SVC` does.
    """

    def predict_proba(self, X):
        """Probability of each class, shape (N, K)."""
        margins = self.decision_function(X)
        if margins.ndim == 1:
            margins = np.column_stack([-margins, margins])
        raised = np.exp(margins - margins.max(axis=1, keepdims=True))
        return raised / raised.sum(axis=1, keepdims=True)


class VotingNeighbors(KNeighborsClassifier):
    """Nearest neighbors among a random choice of the training cells; with `balanced`, votes of rare classes count more."""

    def __init__(self, n_neighbors=5, *, most_cells=2000, balanced=True, random_state=0):
        super().__init__(n_neighbors, algorithm="brute")
        self.most_cells = most_cells
        self.balanced = balanced
        self.random_state = random_state

    def fit(self, X, y):
        """Keep up to `most_cells` cells, each class at its share and no class lost."""
        random, y = np.random.default_rng(self.random_state), np.asarray(y)
        rows = np.arange(len(y))
        if len(y) > self.most_cells:
            kept = []
            for name in np.unique(y):
                own = random.permutation(np.flatnonzero(y == name))
                kept.append(own[: max(round(len(own) * self.most_cells / len(y)), min(self.n_neighbors, len(own)))])
            rows = np.sort(np.concatenate(kept))
        self.n_neighbors_ = min(self.n_neighbors, len(rows))
        super().fit(np.asarray(X, np.float32)[rows], y[rows])
        self.share_ = np.bincount(np.searchsorted(self.classes_, y[rows])) / len(rows)
        return self

    def predict_proba(self, X):
        """Votes, one more shared by all classes, as probabilities, shape (N, K)."""
        k, n_classes = self.n_neighbors_, len(self.classes_)
        near = self.kneighbors(np.asarray(X, np.float32), k, return_distance=False)
        votes = np.column_stack([(self._y[near] == c).sum(axis=1) for c in range(n_classes)])
        prior = self.share_ if self.balanced else np.full(n_classes, 1 / n_classes)
        smooth = (votes + self.share_) / prior
        return smooth / smooth.sum(axis=1, keepdims=True)

    def predict(self, X):
        """The class with the largest probability, shape (N,)."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]
