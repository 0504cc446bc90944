"""Which types a stored model may hold, each reviewed by name, and the audit of a skops file against them.

Invariant: skops imports and calls whatever a trusted name resolves to, with arguments from the file. So nothing is
trusted by prefix: below `sklearn.` and `scipy.` there are helpers that start processes, write files and evaluate
text. The audit reads the file's schema itself, before skops does: each kind of node may hold only what is listed for
it, and a name counts only if it resolves to a class that calls itself so.

What was looked at in each: what `__setstate__` and the constructor do with state from a stranger, and what is called
when the model is asked. Left out on purpose: scipy.stats (its distributions execute text), `PyFuncDistance` (calls
what it holds), methods and operators (call anything by name). Arrays inside trees are used without bounds checks by
scikit-learn itself, so a crafted one can crash the process it is asked in: that is what `retrain.scorer` is apart for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_CLASSES_BY_MODULE = {
    "scipy.interpolate._bsplines": "BSpline",
    "scipy.interpolate._interpolate": "interp1d",
    "sklearn._loss.link": "HalfLogitLink IdentityLink Interval LogLink LogitLink MultinomialLogit",
    "sklearn._loss.loss": (
        "AbsoluteError ExponentialLoss HalfBinomialLoss HalfGammaLoss HalfMultinomialLoss HalfPoissonLoss "
        "HalfSquaredError HalfTweedieLoss HalfTweedieLossIdentity HuberLoss PinballLoss"
    ),
    "sklearn.calibration": "_CalibratedClassifier CalibratedClassifierCV _SigmoidCalibration",
    "sklearn.cluster._affinity_propagation": "AffinityPropagation",
    "sklearn.cluster._agglomerative": "AgglomerativeClustering FeatureAgglomeration",
    "sklearn.cluster._bicluster": "SpectralBiclustering SpectralCoclustering",
    "sklearn.cluster._bisect_k_means": "BisectingKMeans",
    "sklearn.cluster._dbscan": "DBSCAN",
    "sklearn.cluster._hdbscan.hdbscan": "HDBSCAN",
    "sklearn.cluster._kmeans": "KMeans MiniBatchKMeans",
    "sklearn.cluster._mean_shift": "MeanShift",
    "sklearn.cluster._optics": "OPTICS",
    "sklearn.cluster._spectral": "SpectralClustering",
    "sklearn.compose._column_transformer": "ColumnTransformer make_column_selector",
    "sklearn.compose._target": "TransformedTargetRegressor",
    "sklearn.covariance._elliptic_envelope": "EllipticEnvelope",
    "sklearn.covariance._empirical_covariance": "EmpiricalCovariance",
    "sklearn.covariance._graph_lasso": "GraphicalLasso GraphicalLassoCV",
    "sklearn.covariance._robust_covariance": "MinCovDet",
    "sklearn.covariance._shrunk_covariance": "LedoitWolf OAS ShrunkCovariance",
    "sklearn.cross_decomposition._pls": "CCA PLSCanonical PLSRegression PLSSVD",
    "sklearn.decomposition._dict_learning": "DictionaryLearning MiniBatchDictionaryLearning SparseCoder",
    "sklearn.decomposition._factor_analysis": "FactorAnalysis",
    "sklearn.decomposition._fastica": "FastICA",
    "sklearn.decomposition._incremental_pca": "IncrementalPCA",
    "sklearn.decomposition._kernel_pca": "KernelPCA",
    "sklearn.decomposition._lda": "LatentDirichletAllocation",
    "sklearn.decomposition._nmf": "MiniBatchNMF NMF",
    "sklearn.decomposition._pca": "PCA",
    "sklearn.decomposition._sparse_pca": "MiniBatchSparsePCA SparsePCA",
    "sklearn.decomposition._truncated_svd": "TruncatedSVD",
    "sklearn.discriminant_analysis": "LinearDiscriminantAnalysis QuadraticDiscriminantAnalysis",
    "sklearn.dummy": "DummyClassifier DummyRegressor",
    "sklearn.ensemble._bagging": "BaggingClassifier BaggingRegressor",
    "sklearn.ensemble._forest": (
        "ExtraTreesClassifier ExtraTreesRegressor RandomForestClassifier RandomForestRegressor RandomTreesEmbedding"
    ),
    "sklearn.ensemble._gb": "GradientBoostingClassifier GradientBoostingRegressor",
    "sklearn.ensemble._hist_gradient_boosting.binning": "_BinMapper",
    "sklearn.ensemble._hist_gradient_boosting.gradient_boosting": (
        "HistGradientBoostingClassifier HistGradientBoostingRegressor"
    ),
    "sklearn.ensemble._hist_gradient_boosting.predictor": "TreePredictor",
    "sklearn.ensemble._iforest": "IsolationForest",
    "sklearn.ensemble._stacking": "StackingClassifier StackingRegressor",
    "sklearn.ensemble._voting": "VotingClassifier VotingRegressor",
    "sklearn.ensemble._weight_boosting": "AdaBoostClassifier AdaBoostRegressor",
    "sklearn.feature_extraction._dict_vectorizer": "DictVectorizer",
    "sklearn.feature_extraction._hash": "FeatureHasher",
    "sklearn.feature_extraction.image": "PatchExtractor",
    "sklearn.feature_extraction.text": "CountVectorizer HashingVectorizer TfidfTransformer TfidfVectorizer",
    "sklearn.feature_selection._from_model": "SelectFromModel",
    "sklearn.feature_selection._rfe": "RFE RFECV",
    "sklearn.feature_selection._sequential": "SequentialFeatureSelector",
    "sklearn.feature_selection._univariate_selection": (
        "GenericUnivariateSelect SelectFdr SelectFpr SelectFwe SelectKBest SelectPercentile"
    ),
    "sklearn.feature_selection._variance_threshold": "VarianceThreshold",
    "sklearn.frozen._frozen": "FrozenEstimator",
    "sklearn.gaussian_process._gpc": "_BinaryGaussianProcessClassifierLaplace GaussianProcessClassifier",
    "sklearn.gaussian_process._gpr": "GaussianProcessRegressor",
    "sklearn.gaussian_process.kernels": (
        "CompoundKernel ConstantKernel DotProduct ExpSineSquared Exponentiation Matern PairwiseKernel Product RBF "
        "RationalQuadratic Sum WhiteKernel"
    ),
    "sklearn.impute._base": "MissingIndicator SimpleImputer",
    "sklearn.impute._iterative": "_ImputerTriplet IterativeImputer",
    "sklearn.impute._knn": "KNNImputer",
    "sklearn.isotonic": "IsotonicRegression",
    "sklearn.kernel_approximation": "AdditiveChi2Sampler Nystroem PolynomialCountSketch RBFSampler SkewedChi2Sampler",
    "sklearn.kernel_ridge": "KernelRidge",
    "sklearn.linear_model._base": "LinearRegression",
    "sklearn.linear_model._bayes": "ARDRegression BayesianRidge",
    "sklearn.linear_model._coordinate_descent": (
        "ElasticNet ElasticNetCV Lasso LassoCV MultiTaskElasticNet MultiTaskElasticNetCV MultiTaskLasso "
        "MultiTaskLassoCV"
    ),
    "sklearn.linear_model._glm.glm": "GammaRegressor PoissonRegressor TweedieRegressor",
    "sklearn.linear_model._huber": "HuberRegressor",
    "sklearn.linear_model._least_angle": "Lars LarsCV LassoLars LassoLarsCV LassoLarsIC",
    "sklearn.linear_model._logistic": "LogisticRegression LogisticRegressionCV",
    "sklearn.linear_model._omp": "OrthogonalMatchingPursuit OrthogonalMatchingPursuitCV",
    "sklearn.linear_model._passive_aggressive": "PassiveAggressiveClassifier PassiveAggressiveRegressor",
    "sklearn.linear_model._perceptron": "Perceptron",
    "sklearn.linear_model._quantile": "QuantileRegressor",
    "sklearn.linear_model._ransac": "RANSACRegressor",
    "sklearn.linear_model._ridge": "Ridge RidgeCV RidgeClassifier RidgeClassifierCV",
    "sklearn.linear_model._stochastic_gradient": "SGDClassifier SGDOneClassSVM SGDRegressor",
    "sklearn.linear_model._theil_sen": "TheilSenRegressor",
    "sklearn.manifold._classical_mds": "ClassicalMDS",
    "sklearn.manifold._isomap": "Isomap",
    "sklearn.manifold._locally_linear": "LocallyLinearEmbedding",
    "sklearn.manifold._mds": "MDS",
    "sklearn.manifold._spectral_embedding": "SpectralEmbedding",
    "sklearn.manifold._t_sne": "TSNE",
    "sklearn.metrics._dist_metrics": (
        "BrayCurtisDistance32 BrayCurtisDistance64 CanberraDistance32 CanberraDistance64 ChebyshevDistance32 "
        "ChebyshevDistance64 DiceDistance32 DiceDistance64 EuclideanDistance32 EuclideanDistance64 "
        "HammingDistance32 HammingDistance64 HaversineDistance32 HaversineDistance64 JaccardDistance32 "
        "JaccardDistance64 KulsinskiDistance32 KulsinskiDistance64 MahalanobisDistance32 MahalanobisDistance64 "
        "ManhattanDistance32 ManhattanDistance64 MatchingDistance32 MatchingDistance64 MinkowskiDistance32 "
        "MinkowskiDistance64 RogersTanimotoDistance32 RogersTanimotoDistance64 RussellRaoDistance32 "
        "RussellRaoDistance64 SEuclideanDistance32 SEuclideanDistance64 SokalMichenerDistance32 "
        "SokalMichenerDistance64 SokalSneathDistance32 SokalSneathDistance64"
    ),
    "sklearn.metrics._scorer": "_CurveScorer _PassthroughScorer _Scorer",
    "sklearn.mixture._bayesian_mixture": "BayesianGaussianMixture",
    "sklearn.mixture._gaussian_mixture": "GaussianMixture",
    "sklearn.model_selection._classification_threshold": "FixedThresholdClassifier TunedThresholdClassifierCV",
    "sklearn.model_selection._search": "GridSearchCV RandomizedSearchCV",
    "sklearn.model_selection._search_successive_halving": "HalvingGridSearchCV HalvingRandomSearchCV",
    "sklearn.model_selection._split": (
        "GroupKFold GroupShuffleSplit KFold LeaveOneGroupOut LeaveOneOut LeavePGroupsOut LeavePOut "
        "PredefinedSplit RepeatedKFold RepeatedStratifiedKFold ShuffleSplit StratifiedGroupKFold StratifiedKFold "
        "StratifiedShuffleSplit TimeSeriesSplit"
    ),
    "sklearn.multiclass": "_ConstantPredictor OneVsOneClassifier OneVsRestClassifier OutputCodeClassifier",
    "sklearn.multioutput": "ClassifierChain MultiOutputClassifier MultiOutputRegressor RegressorChain",
    "sklearn.naive_bayes": "BernoulliNB CategoricalNB ComplementNB GaussianNB MultinomialNB",
    "sklearn.neighbors._ball_tree": "BallTree",
    "sklearn.neighbors._classification": "KNeighborsClassifier RadiusNeighborsClassifier",
    "sklearn.neighbors._graph": "KNeighborsTransformer RadiusNeighborsTransformer",
    "sklearn.neighbors._kd_tree": "KDTree",
    "sklearn.neighbors._kde": "KernelDensity",
    "sklearn.neighbors._lof": "LocalOutlierFactor",
    "sklearn.neighbors._nca": "NeighborhoodComponentsAnalysis",
    "sklearn.neighbors._nearest_centroid": "NearestCentroid",
    "sklearn.neighbors._regression": "KNeighborsRegressor RadiusNeighborsRegressor",
    "sklearn.neighbors._unsupervised": "NearestNeighbors",
    "sklearn.neural_network._multilayer_perceptron": "MLPClassifier MLPRegressor",
    "sklearn.neural_network._rbm": "BernoulliRBM",
    "sklearn.neural_network._stochastic_optimizers": "AdamOptimizer SGDOptimizer",
    "sklearn.pipeline": "FeatureUnion Pipeline",
    "sklearn.preprocessing._data": (
        "Binarizer KernelCenterer MaxAbsScaler MinMaxScaler Normalizer PowerTransformer QuantileTransformer "
        "RobustScaler StandardScaler"
    ),
    "sklearn.preprocessing._discretization": "KBinsDiscretizer",
    "sklearn.preprocessing._encoders": "OneHotEncoder OrdinalEncoder",
    "sklearn.preprocessing._function_transformer": "FunctionTransformer",
    "sklearn.preprocessing._label": "LabelBinarizer LabelEncoder MultiLabelBinarizer",
    "sklearn.preprocessing._polynomial": "PolynomialFeatures SplineTransformer",
    "sklearn.preprocessing._target_encoder": "TargetEncoder",
    "sklearn.random_projection": "GaussianRandomProjection SparseRandomProjection",
    "sklearn.semi_supervised._label_propagation": "LabelPropagation LabelSpreading",
    "sklearn.semi_supervised._self_training": "SelfTrainingClassifier",
    "sklearn.svm._classes": "LinearSVC LinearSVR NuSVC NuSVR OneClassSVM SVC SVR",
    "sklearn.tree._classes": "DecisionTreeClassifier DecisionTreeRegressor ExtraTreeClassifier ExtraTreeRegressor",
    "sklearn.utils._bunch": "Bunch",
    "sklearn.utils._metadata_requests": "MetadataRequest MethodMetadataRequest",
}
CLASSES = frozenset(f"{module}.{name}" for module, names in _CLASSES_BY_MODULE.items() for name in names.split())
"""Instances of these may be in a file, made without their constructor and given their attributes."""

_LOSSES = frozenset(
    f"sklearn._loss._loss.Cy{name}"
    for name in (
        *("AbsoluteError", "ExponentialLoss", "HalfBinomialLoss", "HalfGammaLoss", "HalfMultinomialLoss"),
        *("HalfPoissonLoss", "HalfSquaredError", "HalfTweedieLoss", "HalfTweedieLossIdentity", "HuberLoss"),
        "PinballLoss",
    )
) | frozenset(
    f"sklearn.linear_model._sgd_fast.{name}"
    for name in ("EpsilonInsensitive", "Hinge", "ModifiedHuber", "SquaredEpsilonInsensitive", "SquaredHinge")
)

_BOUND = frozenset({"sklearn.utils.validation.check_array"})
"""Functions that may be held with arguments from the file (functools.partial), besides NumPy's and SciPy's ufuncs."""

FUNCTIONS = _BOUND | frozenset(
    f"{module}.{name}"
    for module, names in {
        "numpy": "clip mean median nan_to_num sum",
        "scipy._lib.array_api_compat.numpy._aliases": "asarray",
        "sklearn.feature_selection._mutual_info": "mutual_info_classif mutual_info_regression",
        "sklearn.feature_selection._univariate_selection": "chi2 f_classif f_regression r_regression",
        "sklearn.metrics._classification": (
            "accuracy_score balanced_accuracy_score brier_score_loss d2_brier_score d2_log_loss_score f1_score "
            "jaccard_score log_loss matthews_corrcoef precision_score recall_score"
        ),
        "sklearn.metrics._ranking": "average_precision_score roc_auc_score top_k_accuracy_score",
        "sklearn.metrics._regression": (
            "d2_absolute_error_score explained_variance_score max_error mean_absolute_error "
            "mean_absolute_percentage_error mean_gamma_deviance mean_poisson_deviance mean_squared_error "
            "mean_squared_log_error median_absolute_error r2_score root_mean_squared_error root_mean_squared_log_error"
        ),
        "sklearn.metrics._scorer": "negative_likelihood_ratio positive_likelihood_ratio",
    }.items()
    for name in names.split()
)
"""Functions that may be in a file: they compute, and nothing else, whatever they are called with."""

PROTOCOLS = (1, 2)
"""Versions of skops' format whose nodes were looked at: the file chooses by which it is read."""
_KEYS = frozenset(f"builtins.{name}" for name in ("bool", "float", "int", "str"))
_PLAIN = {
    "BytearrayNode": frozenset({"builtins.bytearray"}),
    "BytesNode": frozenset({"builtins.bytes"}),
    "DTypeNode": frozenset({"numpy.dtype"}),
    "DefaultDictNode": frozenset({"collections.defaultdict"}),
    "DictNode": frozenset({"builtins.dict", "collections.OrderedDict", "sklearn.utils._bunch.Bunch"}),
    "JsonNode": frozenset({"builtins.str"}),
    "ListNode": frozenset({"builtins.list"}),
    "LossNode": _LOSSES,
    "MaskedArrayNode": frozenset({"numpy.ma.MaskedArray", "numpy.ma.core.MaskedArray"}),
    "RandomGeneratorNode": frozenset({"numpy.random._generator.Generator"}),
    "RandomStateNode": frozenset({"numpy.random.mtrand.RandomState"}),
    "SetNode": frozenset({"builtins.set"}),
    "SliceNode": frozenset({"builtins.slice"}),
    "TreeNode": frozenset({"sklearn.tree._tree.Tree"}),
    "TupleNode": frozenset({"builtins.tuple", "sklearn.impute._iterative._ImputerTriplet"}),
}
"""skops' kinds of nodes whose types are few."""
_UFUNC_MODULES = frozenset(
    {"numpy", "numpy._core.umath", "numpy._core._multiarray_umath", "scipy.special", "scipy.special._ufuncs"}
)


def refused(schema: Any, own: Sequence[str] = ()) -> list[str]:
    """What a skops file may not hold, by its parsed `schema.json`; empty when it may be loaded.

    `own`: what a team trusts besides, names of types and functions, or prefixes of names of classes when they end in
    a dot. Imports the modules of the classes that it finds trusted. Raises RecursionError for one nested too deep.
    """
    if not isinstance(schema, dict) or schema.get("protocol") not in PROTOCOLS:
        return ["another version of the format"]
    return sorted(set(_refused(schema, own)))


def _refused(node: Any, own: Sequence[str]) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _refused(item, own)
        return
    if not isinstance(node, dict):
        return
    if "__loader__" in node:
        yield from _about(node, own)
    for value in node.values():
        yield from _refused(value, own)


def _about(node: Mapping[str, Any], own: Sequence[str]) -> Iterator[str]:
    loader, module, name = (node.get(k) for k in ("__loader__", "__module__", "__class__"))
    if not (isinstance(loader, str) and isinstance(module, str) and isinstance(name, str)):
        yield "a node without a type"
        return
    full = f"{module}.{name}"
    match loader:
        case "ObjectNode":
            known = full in CLASSES or _is_own(full, own)
            allowed = known and _is_class(module, name)
        case "TypeNode":
            known = full in _KEYS or full in CLASSES or _is_own(full, own) or module in ("builtins", "numpy")
            allowed = known and _is_value_type(module, name, own)
        case "FunctionNode":
            allowed = full in FUNCTIONS or full in own or _is_ufunc(module, name)
        case "PartialNode":
            allowed = full == "functools.partial" and _is_bindable(node, own)
        case "NdArrayNode":
            allowed = full == "numpy.ndarray" or _is_number(module, name)
        case "SparseMatrixNode":
            allowed = module.startswith("scipy.sparse.")  # only says what it was: SciPy's own reader makes it
        case _:
            allowed = full in _PLAIN.get(loader, ())
    if allowed and loader == "DictNode":
        allowed = all(_is_key_type(item) for item in _items(node.get("key_types")))
    if not allowed:
        yield full if loader in ("ObjectNode", "TypeNode", "FunctionNode") else f"{full} ({loader})"


def _items(node: Any) -> Sequence[Any]:
    """What a ListNode holds; a text that is no node when it is none."""
    content = node.get("content") if isinstance(node, dict) and node.get("__loader__") == "ListNode" else None
    return content if isinstance(content, list) else ("",)


def _is_key_type(node: Any) -> bool:
    """skops calls it with each key."""
    if not isinstance(node, dict) or node.get("__loader__") != "TypeNode":
        return False
    module, name = str(node.get("__module__")), str(node.get("__class__"))
    return f"{module}.{name}" in _KEYS or _is_number(module, name)


def _is_own(full: str, own: Sequence[str]) -> bool:
    return any(full == name or (name.endswith(".") and full.startswith(name)) for name in own)


def _is_class(module: str, name: str) -> bool:
    found = _resolve(module, name)
    return isinstance(found, type) and (found.__module__, found.__qualname__) == (module, name)


def _is_value_type(module: str, name: str, own: Sequence[str]) -> bool:
    full = f"{module}.{name}"
    if module == "builtins":
        return name in ("bool", "bytes", "dict", "float", "int", "list", "set", "str", "tuple")
    return _is_number(module, name) or ((full in CLASSES or _is_own(full, own)) and _is_class(module, name))


def _is_number(module: str, name: str) -> bool:
    """A NumPy scalar type, by the name under which NumPy has it."""
    import numpy as np

    found = getattr(np, name, None) if module == "numpy" else None
    return isinstance(found, type) and issubclass(found, np.generic) and not issubclass(found, np.void)


def _is_ufunc(module: str, name: str) -> bool:
    import numpy as np

    return module in _UFUNC_MODULES and isinstance(_resolve(module, name), np.ufunc)


def _is_bindable(node: Mapping[str, Any], own: Sequence[str]) -> bool:
    """A partial of a function that does nothing but compute, whatever arguments it is given."""
    content = node.get("content")
    func = content.get("func") if isinstance(content, dict) else None
    if not isinstance(func, dict) or func.get("__loader__") != "FunctionNode":
        return False
    module, name = str(func.get("__module__")), str(func.get("__class__"))
    return f"{module}.{name}" in (*_BOUND, *own) or _is_ufunc(module, name)


def _resolve(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
