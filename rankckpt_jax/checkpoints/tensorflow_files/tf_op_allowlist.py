"""Which TensorFlow operations a module may hold: those that do nothing but compute.

TensorFlow has more than 1500 operations; some read or write files, run Python or
machine code, open connections or end the process. A module from elsewhere may have
them where nobody looks: in a function that a loop calls, in what fills a table when the
module is loaded, in a gradient. So everything that is not listed here is refused,
wherever it stands, before anything is loaded or converted.

Not listed although tf2jax knows it: XlaCallModule, which carries a program for XLA in
which calls of machine code by address may stand.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from rankckpt_jax.errors import InputError

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
"""What loading and applying a module may run."""

SAVING = frozenset(("SaveV2", "MergeV2Checkpoints", "ShardedFilename", "RestoreV2"))
"""What every export has to be saved by again: allowed where nothing ever runs it."""


def refuse_others(meta_graphs: Iterable[Any], where: str) -> None:
    """Refuses a module that could do anything but compute when it is loaded or run.

    TensorFlow's loader runs functions of its own accord: those that make and fill
    resources, and those that restore objects. A file says which these are, so their
    names tell nothing: every function that the file's objects could reach is held to
    `COMPUTING`, with all that it calls. The graph around them is never run, and what
    only it calls, to save the module again, may hold `SAVING` too.

    Args:
      meta_graphs: The module's `MetaGraphDef`s.
      where: For the message: the module.

    Raises:
      InputError: It names the operations and where they stand.
    """
    found: dict[str, str] = {}
    for meta_graph in meta_graphs:
        for op, place in _others(meta_graph):
            found.setdefault(op, place)
        for asset in _assets(meta_graph):
            _check_asset(asset, where)
    if found:
        listed = [f"{op} in {place}" for op, place in sorted(found.items())]
        raise InputError(
            "The module holds operations that could do more than compute: read or "
            "write files, say, or run code",
            where=where,
            expected="operations of networks of images, and no others",
            found=", ".join(listed[:8]) + (", ..." if len(listed) > 8 else ""),
            fix="export the network alone, without input pipelines and summaries; "
            "nothing of this module was run",
        )


def _others(meta_graph: Any) -> Iterator[tuple[str, str]]:
    """(operation, where it stands) of what is not allowed there."""
    graph_def = meta_graph.graph_def
    library = {f.signature.name: f for f in graph_def.library.function}
    running = _running(meta_graph, library)
    for node in graph_def.node:
        if node.op not in library and node.op not in COMPUTING | SAVING:
            yield node.op, "the graph"
    for name, function in library.items():
        allowed = COMPUTING if name in running else COMPUTING | SAVING
        if name in COMPUTING | SAVING:
            # It would stand in for the operation of that name.
            yield name, "a function's name"
        for node in function.node_def:
            if node.op not in library and node.op not in allowed:
                yield node.op, f"function {name}"


def _running(meta_graph: Any, library: dict[str, Any]) -> set[str]:
    """Names of the functions that something else than the graph around could call."""
    definitions = meta_graph.graph_def.library
    waiting = list(meta_graph.object_graph_def.concrete_functions)
    waiting += [gradient.gradient_func for gradient in definitions.gradient]
    waiting += [entry.gradient_func for entry in definitions.registered_gradients]
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in library and name not in reached:
            reached.add(name)
            for node in library[name].node_def:
                waiting += _called(node)
    return reached


def _called(node: Any) -> Iterator[str]:
    """Names that a node may call functions by: its own, and those it is given."""
    yield node.op
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)
        # Gradients go by a name that is registered for them.
        yield value.s.decode(errors="replace")


def _assets(meta_graph: Any) -> Iterator[str]:
    """Names of the files that loading would hand to whoever asks for them."""
    from tensorflow.core.protobuf import meta_graph_pb2

    for asset in meta_graph.asset_file_def:
        yield asset.filename
    for key, collection in meta_graph.collection_def.items():
        if key != "saved_model_assets":
            continue
        for packed in collection.any_list.value:
            asset = meta_graph_pb2.AssetFileDef()
            packed.Unpack(asset)
            yield asset.filename


def _check_asset(name: str, where: str) -> None:
    """Refuses an asset that is not a file below the module's `assets/`."""
    pure = pathlib.PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or ":" in name or "\0" in name:
        raise InputError(
            "The module names a file outside its own directory",
            where=where,
            expected="assets below assets/",
            found=repr(name),
            fix="get the module from its publisher; nothing of it was run",
        )
