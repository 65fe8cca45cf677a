"""The TensorFlow operations that a module may contain: those that only compute.

TensorFlow has more than 1500 operations. Some read or write files, run Python or
machine code, open connections or end the process. An untrusted module may hide them in
a function that a loop calls, in the initializer of a table, or in a gradient. So every
operation that is not listed here is refused wherever it stands, before the module is
loaded or converted.

XlaCallModule is not listed although tf2jax supports it: it carries an XLA program,
which may call machine code by address.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from rankckpt_jax.errors import InputError, some

_COMPUTING = """
Const Identity IdentityN NoOp Placeholder PlaceholderV2 PlaceholderWithDefault
Shape ShapeN Size Rank StopGradient PreventGradient CheckNumerics CheckNumericsV2
EnsureShape Assert GuaranteeConst Snapshot _Arg _Retval ControlTrigger
DebugGradientIdentity

VarHandleOp ReadVariableOp DestroyResourceOp VarIsInitializedOp VariableShape
_ReadVariablesOp _VarHandlesOp Variable VariableV2 TemporaryVariable
DestroyTemporaryVariable IsVariableInitialized Assign AssignAdd AssignSub
AssignVariableOp AssignAddVariableOp AssignSubVariableOp ResourceGather
ResourceGatherNd ResourceScatterAdd ResourceScatterUpdate ResourceStridedSliceAssign
DisableCopyOnRead

PartitionedCall StatefulPartitionedCall SymbolicGradient If StatelessIf While
StatelessWhile Case StatelessCase Switch Merge Enter Exit NextIteration LoopCond
RefSwitch RefMerge RefEnter RefExit RefNextIteration RefIdentity FakeParam
DeviceIndex

Abs Acos Acosh Add AddN AddV2 AccumulateNV2 Angle Asin Asinh Atan Atan2 Atanh
BesselI0 BesselI0e BesselI1 BesselI1e Betainc Bincount DenseBincount Cast Ceil
ClipByValue Complex ComplexAbs Conj Cos Cosh Cross Cumprod Cumsum
CumulativeLogsumexp Digamma Div DivNoNan Erf Erfc Erfinv Exp Expm1 Floor FloorDiv
FloorMod FresnelCos FresnelSin Igamma Igammac Imag Inv Invert InvertPermutation
IsFinite IsInf IsNan Lgamma Log Log1p Maximum Minimum Mod Mul MulNoNan Ndtri
Neg NextAfter Polygamma Pow Real RealDiv Reciprocal Rint Round Rsqrt Sign Sin Sinh
Sqrt Square SquaredDifference Sub Tan Tanh TruncateDiv TruncateMod Xdivy Xlog1py
Xlogy Zeta
BitwiseAnd BitwiseOr BitwiseXor LeftShift RightShift PopulationCount Bitcast
Equal NotEqual Greater GreaterEqual Less LessEqual ApproximateEqual LogicalAnd
LogicalNot LogicalOr Select SelectV2 Where
All Any ArgMax ArgMin EuclideanNorm Max Mean Min Prod Sum L2Loss
SegmentMax SegmentMean SegmentMin SegmentProd SegmentSum UnsortedSegmentMax
UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum

BatchToSpace BatchToSpaceND SpaceToBatch SpaceToBatchND SpaceToDepth DepthToSpace
BroadcastArgs BroadcastGradientArgs BroadcastTo Concat ConcatOffset ConcatV2
DynamicPartition DynamicStitch ParallelDynamicStitch DeepCopy Empty ExpandDims Fill
Gather GatherNd GatherV2 InplaceAdd InplaceSub InplaceUpdate LinSpace
LowerBound UpperBound MatrixBandPart MatrixDiag MatrixDiagPart MatrixDiagPartV2
MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixSetDiag MatrixSetDiagV2
MatrixSetDiagV3 Diag DiagPart MirrorPad MirrorPadGrad OneHot OnesLike Pack Pad PadV2
ParallelConcat Range Reshape Reverse ReverseSequence ReverseV2 Roll ScatterNd
Slice Split SplitV Squeeze StridedSlice StridedSliceGrad TensorScatterAdd
TensorScatterMax TensorScatterMin TensorScatterSub TensorScatterUpdate
TensorStridedSliceUpdate Tile TileGrad Transpose ConjugateTranspose Unique UniqueV2
UniqueWithCounts UniqueWithCountsV2 Unpack UnravelIndex ZerosLike
InTopK InTopKV2 TopK TopKV2 NonMaxSuppression NonMaxSuppressionV2
NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5
CombinedNonMaxSuppression ListDiff SparseToDense

BatchMatMul BatchMatMulV2 BatchMatMulV3 MatMul SparseMatMul Einsum Cholesky Eig
SelfAdjointEigV2 Svd Qr MatrixDeterminant LogMatrixDeterminant MatrixInverse
MatrixSolve MatrixSquareRoot MatrixTriangularSolve TridiagonalSolve
FFT FFT2D FFT3D IFFT IFFT2D IFFT3D RFFT RFFT2D RFFT3D IRFFT IRFFT2D IRFFT3D

AvgPool AvgPool3D MaxPool MaxPool3D MaxPoolV2 MaxPoolWithArgmax FractionalAvgPool
FractionalMaxPool BiasAdd BiasAddV1 Conv Conv2D Conv3D Conv2DBackpropInput
Conv2DBackpropFilter Conv3DBackpropInput Conv3DBackpropInputV2
Conv3DBackpropFilter Conv3DBackpropFilterV2 DepthwiseConv2dNative
DepthwiseConv2dNativeBackpropInput DepthwiseConv2dNativeBackpropFilter Dilation2D
Dilation2DBackpropInput Dilation2DBackpropFilter Elu Relu Relu6 LeakyRelu Selu
Sigmoid Softmax LogSoftmax Softplus Softsign LRN FusedBatchNorm
FusedBatchNormV2 FusedBatchNormV3 BatchNormWithGlobalNormalization
SoftmaxCrossEntropyWithLogits SparseSoftmaxCrossEntropyWithLogits NthElement
QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4
FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel

AvgPoolGrad AvgPool3DGrad MaxPoolGrad MaxPoolGradV2 MaxPoolGradGrad
MaxPoolGradGradV2 MaxPoolGradWithArgmax MaxPool3DGrad BiasAddGrad EluGrad ReluGrad
Relu6Grad LeakyReluGrad SeluGrad SigmoidGrad SoftplusGrad SoftsignGrad TanhGrad
LRNGrad FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3
BatchNormWithGlobalNormalizationGrad InvGrad ReciprocalGrad RsqrtGrad SqrtGrad
IgammaGradA ResizeBicubicGrad ResizeBilinearGrad ResizeNearestNeighborGrad
CropAndResizeGradBoxes CropAndResizeGradImage
FakeQuantWithMinMaxArgsGradient FakeQuantWithMinMaxVarsGradient
FakeQuantWithMinMaxVarsPerChannelGradient

AdjustContrastv2 AdjustHue AdjustSaturation CropAndResize ExtractGlimpse
ExtractGlimpseV2 ExtractImagePatches HSVToRGB RGBToHSV ImageProjectiveTransformV2
ImageProjectiveTransformV3 ResizeArea ResizeBicubic ResizeBilinear
ResizeNearestNeighbor ScaleAndTranslate ScaleAndTranslateGrad
SampleDistortedBoundingBox SampleDistortedBoundingBoxV2
StatelessSampleDistortedBoundingBox
DecodeJpeg DecodePng DecodeImage DecodeAndCropJpeg DecodeRaw DecodeBase64
ExtractJpegShape

Multinomial ParameterizedTruncatedNormal RandomGamma RandomShuffle
RandomStandardNormal RandomUniform RandomUniformInt TruncatedNormal
RngReadAndSkip RngSkip StatefulStandardNormalV2 StatefulUniform StatefulUniformInt
StatefulUniformFullInt StatefulTruncatedNormal StatelessMultinomial
StatelessRandomBinomial StatelessRandomGammaV2 StatelessRandomGetAlg
StatelessRandomGetKeyCounter StatelessRandomGetKeyCounterAlg StatelessRandomNormal
StatelessRandomNormalV2 StatelessRandomUniform StatelessRandomUniformFullInt
StatelessRandomUniformFullIntV2 StatelessRandomUniformInt
StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessShuffle
StatelessTruncatedNormal StatelessTruncatedNormalV2

EmptyTensorList TensorListConcat TensorListConcatV2 TensorListElementShape
TensorListFromTensor TensorListGather TensorListGetItem TensorListLength
TensorListPopBack TensorListPushBack TensorListReserve TensorListResize
TensorListScatter TensorListScatterIntoExistingList TensorListScatterV2
TensorListSetItem TensorListSplit TensorListStack
TensorArrayV3 TensorArrayCloseV3 TensorArrayConcatV3 TensorArrayGatherV3
TensorArrayGradV3 TensorArrayReadV3 TensorArrayScatterV3 TensorArraySizeV3
TensorArraySplitV3 TensorArrayWriteV3 StackV2 StackCloseV2 StackPopV2 StackPushV2

AsString ReduceJoin StringFormat StringJoin StringLength StringLower StringUpper
StaticRegexFullMatch
HashTable HashTableV2 MutableHashTableV2 LookupTableExportV2 LookupTableFind
LookupTableFindV2 LookupTableImportV2 LookupTableInsertV2 LookupTableSize
LookupTableSizeV2 InitializeTable InitializeTableV2 AnonymousHashTable
AnonymousMutableHashTable

XlaConv XlaConvV2 XlaDot XlaDotV2 XlaDynamicSlice XlaDynamicUpdateSlice XlaGather
XlaOptimizationBarrier XlaPad XlaReducePrecision XlaReduceWindow
XlaRngBitGenerator XlaScatter XlaSelectAndScatter XlaSharding XlaVariadicReduceV2
XlaVariadicSort
"""
COMPUTING = frozenset(_COMPUTING.split())
"""Operations that may run when a module is loaded or applied."""

SAVING = frozenset(("SaveV2", "MergeV2Checkpoints", "ShardedFilename", "RestoreV2"))
"""Operations that every export contains for saving; allowed where nothing runs them."""


def check_operations(meta_graphs: Iterable[Any], where: str) -> None:
    """Refuse a module that could do more than compute when it is loaded or applied.

    TensorFlow's loader itself runs functions that create and fill resources and that
    restore objects. The file decides which functions these are, so their names prove
    nothing: every function that an object of the file can reach, directly or through
    calls, is limited to `COMPUTING`. The outer graph is never run. It may contain
    `SAVING`, and so may functions that only it calls.

    Args:
      meta_graphs: The module's `MetaGraphDef`s.
      where: The module, for the message.

    Raises:
      InputError: The message lists the forbidden operations and their functions.
    """
    forbidden: dict[str, str] = {}
    for meta_graph in meta_graphs:
        for operation, place in _forbidden(meta_graph):
            forbidden.setdefault(operation, place)
        for asset in _assets(meta_graph):
            _check_asset(asset, where)
    if forbidden:
        raise InputError(
            "The module contains operations that do more than compute; they could "
            "access files or run code",
            where=where,
            expected="only operations of image networks",
            found=some(f"{op} in {place}" for op, place in sorted(forbidden.items())),
            fix="export the network alone, without input pipelines and summaries; "
            "nothing of this module was run",
        )


def _forbidden(meta_graph: Any) -> Iterator[tuple[str, str]]:
    """Yield (operation, its place) for each operation that is not allowed there."""
    graph_def = meta_graph.graph_def
    functions = {f.signature.name: f for f in graph_def.library.function}
    reachable = _reachable(meta_graph, functions)
    for node in graph_def.node:
        if node.op not in functions and node.op not in COMPUTING | SAVING:
            yield node.op, "the graph"
    for name, function in functions.items():
        allowed = COMPUTING if name in reachable else COMPUTING | SAVING
        if name in COMPUTING | SAVING:
            # It would replace the operation of that name.
            yield name, "a function's name"
        for node in function.node_def:
            if node.op not in functions and node.op not in allowed:
                yield node.op, f"function {name}"


def _reachable(meta_graph: Any, functions: dict[str, Any]) -> set[str]:
    """Return the functions that something other than the outer graph could call."""
    library = meta_graph.graph_def.library
    pending = list(meta_graph.object_graph_def.concrete_functions)
    pending += [gradient.gradient_func for gradient in library.gradient]
    pending += [entry.gradient_func for entry in library.registered_gradients]
    reachable: set[str] = set()
    while pending:
        name = pending.pop()
        if name in functions and name not in reachable:
            reachable.add(name)
            for node in functions[name].node_def:
                pending += _called(node)
    return reachable


def _called(node: Any) -> Iterator[str]:
    """Yield all names through which a node could call a function."""
    yield node.op
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)
        # Gradients are registered by name.
        yield value.s.decode(errors="replace")


def _assets(meta_graph: Any) -> Iterator[str]:
    """Yield the names of the module's files that its operations may read."""
    # Here for start-up time: the messages are part of TensorFlow.
    from tensorflow.core.protobuf import meta_graph_pb2

    for asset in meta_graph.asset_file_def:
        yield asset.filename
    if "saved_model_assets" in meta_graph.collection_def:
        for packed in meta_graph.collection_def["saved_model_assets"].any_list.value:
            asset = meta_graph_pb2.AssetFileDef()
            packed.Unpack(asset)
            yield asset.filename


def _check_asset(name: str, where: str) -> None:
    """Raise if an asset is not a file below the module's `assets/`."""
    path = pathlib.PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name:
        raise InputError(
            "The module refers to a file outside its own directory",
            where=where,
            expected="assets below assets/",
            found=repr(name),
            fix="get the module from its publisher; nothing of it was run",
        )
