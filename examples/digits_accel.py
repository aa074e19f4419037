"""Accelerate custom training loop functions: the same training and prediction with and without dlaccelerate.

A small residual network reads 28x28 images of digits and predicts two things at once: which digit it is, and by what
angle it is rotated. It is trained twice from the same start, once by calling the model's functions as they are, once
through dlaccelerate, and both are timed; then prediction, likewise.

    python examples/digits_accel.py --help

After the MathWorks example "Accelerate Custom Training Loop Functions"; the code follows it step by step.
"""

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from minidl import (
    DataError,
    DeviceError,
    OptionError,
    adamupdate,
    arrayDatastore,
    batchnorm,
    canUseGPU,
    categories,
    clearCache,
    combine,
    crossentropy,
    digitTest4DArrayData,
    digitTrain4DArrayData,
    dlaccelerate,
    dlarray,
    dlconv,
    dlfeval,
    dlgradient,
    dlupdate,
    extractdata,
    fullyconnect,
    gather,
    gpuArray,
    hasdata,
    initializeGlorot,
    initializeOnes,
    initializeZeros,
    minibatchqueue,
    mse,
    onehotdecode,
    onehotencode,
    partition,
    relu,
    reset,
    rng,
    shuffle,
    softmax,
    struct,
)

# ---- Model ------------------------------------------------------------------------------------------------------


def modelParameters(numClasses, numResponses):
    """Initial learnable parameters and state, in the format parameters.OperationName.ParameterName."""
    parameters, state = struct(), struct()

    # First convolutional layer.
    filterSize = [5, 5]
    numChannels = 1
    numFilters = 16

    sz = [*filterSize, numChannels, numFilters]
    numOut = np.prod(filterSize) * numFilters
    numIn = np.prod(filterSize) * numFilters

    parameters.conv1 = struct(Weights=initializeGlorot(sz, numOut, numIn), Bias=initializeZeros([numFilters, 1]))

    # First batch normalization layer.
    parameters.batchnorm1 = struct(Offset=initializeZeros([numFilters, 1]), Scale=initializeOnes([numFilters, 1]))
    state.batchnorm1 = struct(
        TrainedMean=initializeZeros([numFilters, 1]), TrainedVariance=initializeOnes([numFilters, 1])
    )

    # Second convolutional layer.
    filterSize = [3, 3]
    numChannels = 16
    numFilters = 32

    sz = [*filterSize, numChannels, numFilters]
    numOut = np.prod(filterSize) * numFilters
    numIn = np.prod(filterSize) * numFilters

    parameters.conv2 = struct(Weights=initializeGlorot(sz, numOut, numIn), Bias=initializeZeros([numFilters, 1]))

    # Second batch normalization layer.
    parameters.batchnorm2 = struct(Offset=initializeZeros([numFilters, 1]), Scale=initializeOnes([numFilters, 1]))
    state.batchnorm2 = struct(
        TrainedMean=initializeZeros([numFilters, 1]), TrainedVariance=initializeOnes([numFilters, 1])
    )

    # Third convolutional layer.
    filterSize = [3, 3]
    numChannels = 32
    numFilters = 32

    sz = [*filterSize, numChannels, numFilters]
    numOut = np.prod(filterSize) * numFilters
    numIn = np.prod(filterSize) * numFilters

    parameters.conv3 = struct(Weights=initializeGlorot(sz, numOut, numIn), Bias=initializeZeros([numFilters, 1]))

    # Third batch normalization layer.
    parameters.batchnorm3 = struct(Offset=initializeZeros([numFilters, 1]), Scale=initializeOnes([numFilters, 1]))
    state.batchnorm3 = struct(
        TrainedMean=initializeZeros([numFilters, 1]), TrainedVariance=initializeOnes([numFilters, 1])
    )

    # Convolutional layer in the skip connection.
    filterSize = [1, 1]
    numChannels = 16
    numFilters = 32

    sz = [*filterSize, numChannels, numFilters]
    numOut = np.prod(filterSize) * numFilters
    numIn = np.prod(filterSize) * numFilters

    parameters.convSkip = struct(Weights=initializeGlorot(sz, numOut, numIn), Bias=initializeZeros([numFilters, 1]))

    # Batch normalization layer in the skip connection.
    parameters.batchnormSkip = struct(Offset=initializeZeros([numFilters, 1]), Scale=initializeOnes([numFilters, 1]))
    state.batchnormSkip = struct(
        TrainedMean=initializeZeros([numFilters, 1]), TrainedVariance=initializeOnes([numFilters, 1])
    )

    # Fully connected layer corresponding to the classification output.
    sz = [numClasses, 6272]
    numOut = numClasses
    numIn = 6272
    parameters.fc1 = struct(Weights=initializeGlorot(sz, numOut, numIn), Bias=initializeZeros([numClasses, 1]))

    # Fully connected layer corresponding to the regression output.
    sz = [numResponses, 6272]
    numOut = numResponses
    numIn = 6272
    parameters.fc2 = struct(Weights=initializeGlorot(sz, numOut, numIn), Bias=initializeZeros([numResponses, 1]))

    return parameters, state


def normalize(dlY, parameters, state, doTraining):
    """Batch normalization of one layer: statistics of the batch in training, the trained ones in prediction."""
    offset = parameters.Offset
    scale = parameters.Scale
    trainedMean = state.TrainedMean
    trainedVariance = state.TrainedVariance

    if doTraining:
        dlY, trainedMean, trainedVariance = batchnorm(dlY, offset, scale, trainedMean, trainedVariance, nargout=3)

        # Update state
        state.TrainedMean = trainedMean
        state.TrainedVariance = trainedVariance
    else:
        dlY = batchnorm(dlY, offset, scale, trainedMean, trainedVariance)
    return dlY


def model(parameters, dlX, doTraining, state):
    """Predicted labels, predicted angles and updated state."""
    state = state.copy()  # MATLAB copies on assignment

    # Convolution
    weights = parameters.conv1.Weights
    bias = parameters.conv1.Bias
    dlY = dlconv(dlX, weights, bias, Padding="same")

    # Batch normalization, ReLU
    dlY = normalize(dlY, parameters.batchnorm1, state.batchnorm1, doTraining)
    dlY = relu(dlY)

    # Convolution, batch normalization (Skip connection)
    weights = parameters.convSkip.Weights
    bias = parameters.convSkip.Bias
    dlYSkip = dlconv(dlY, weights, bias, Stride=2)
    dlYSkip = normalize(dlYSkip, parameters.batchnormSkip, state.batchnormSkip, doTraining)

    # Convolution
    weights = parameters.conv2.Weights
    bias = parameters.conv2.Bias
    dlY = dlconv(dlY, weights, bias, Padding="same", Stride=2)

    # Batch normalization, ReLU
    dlY = normalize(dlY, parameters.batchnorm2, state.batchnorm2, doTraining)
    dlY = relu(dlY)

    # Convolution
    weights = parameters.conv3.Weights
    bias = parameters.conv3.Bias
    dlY = dlconv(dlY, weights, bias, Padding="same")

    # Batch normalization
    dlY = normalize(dlY, parameters.batchnorm3, state.batchnorm3, doTraining)

    # Addition, ReLU
    dlY = dlYSkip + dlY
    dlY = relu(dlY)

    # Fully connect, softmax (labels)
    weights = parameters.fc1.Weights
    bias = parameters.fc1.Bias
    dlY1 = fullyconnect(dlY, weights, bias)
    dlY1 = softmax(dlY1)

    # Fully connect (angles)
    weights = parameters.fc2.Weights
    bias = parameters.fc2.Bias
    dlY2 = fullyconnect(dlY, weights, bias)

    return dlY1, dlY2, state


def modelGradients(parameters, dlX, T1, T2, state):
    """Gradients of the loss by the learnable parameters, updated state, and the loss."""
    doTraining = True
    dlY1, dlY2, state = model(parameters, dlX, doTraining, state)

    lossLabels = crossentropy(dlY1, T1)
    lossAngles = mse(dlY2, T2)

    loss = lossLabels + 0.1 * lossAngles
    gradients = dlgradient(loss, parameters)
    return gradients, state, loss


def modelStep(parameters, dlX, T1, T2, state, trailingAvg, trailingAvgSq, iteration):
    """A whole training step, the solver's update included (--whole-step)."""
    gradients, state, loss = modelGradients(parameters, dlX, T1, T2, state)
    parameters, trailingAvg, trailingAvgSq = adamupdate(parameters, gradients, trailingAvg, trailingAvgSq, iteration)
    return parameters, state, loss, trailingAvg, trailingAvgSq


def modelPredictions(modelFcn, parameters, state, mbq, classes):
    """Predicted labels and angles of all mini-batches of the queue."""
    doTraining = False
    predictions1, predictions2 = [], []

    while hasdata(mbq):
        dlXTest = next(mbq)
        dlYPred1, dlYPred2, _ = modelFcn(parameters, dlXTest, doTraining, state)

        YPred1 = onehotdecode(dlYPred1, classes, 0)
        YPred2 = gather(extractdata(dlYPred2)).T

        predictions1.append(YPred1)
        predictions2.append(YPred2)
    return np.concatenate(predictions1), np.concatenate(predictions2)


# ---- Mini-batches ----------------------------------------------------------------------------------------------

classNames: list = []  # the class names of the training data


def preprocessMiniBatch(XCell, YCell, angleCell):
    """Images along the fourth dimension, one-hot labels and angles along the second."""
    # Preprocess predictors.
    X = preprocessMiniBatchPredictors(XCell)

    # Extract label data from cell and concatenate
    Y = np.stack(YCell, axis=1)

    # Extract angle data from cell and concatenate
    angle = np.concatenate(angleCell, axis=1)

    # One-hot encode labels
    Y = onehotencode(Y, 0, ClassNames=classNames)
    return X, Y, angle


def preprocessMiniBatchPredictors(XCell):
    """Images along the fourth dimension."""
    return np.stack(XCell, axis=3)


# ---- Training --------------------------------------------------------------------------------------------------


class Progress:
    """Progress bar, or a line per epoch where there is no terminal; with --plots training-progress the loss's curve."""

    def __init__(self, name, options):
        from tqdm import tqdm

        self.iterationsPerEpoch, self.epochs = options.iterationsPerEpoch, options.epochs
        self.numIterations = self.epochs * self.iterationsPerEpoch
        self.bar = tqdm(total=self.numIterations, desc=name, unit="it", disable=None)
        self.name, self.epoch, self.losses, self.curve = name, 1, [], None
        self.start = self.timed = time.perf_counter()
        if options.plots == "training-progress":
            plt = pyplot()
            self.figure, axes = plt.subplots(num=f"Training Progress ({name})")
            (self.curve,) = axes.plot([], [], color=(0.85, 0.325, 0.098))
            axes.set(xlabel="Iteration", ylabel="Loss")
            axes.grid(True)

    def update(self, epoch, loss):
        """One more iteration. The loss is looked at only now and then: looking costs a copy."""
        self.epoch = epoch
        self.losses.append(loss)
        n = len(self.losses)
        self.bar.update(1)
        if n in (10, 30):
            self.estimate(n)
        if self.bar.disable and n % self.iterationsPerEpoch == 0:
            mean = np.mean([float(loss) for loss in self.losses[-self.iterationsPerEpoch :]])
            seconds = time.perf_counter() - self.start
            line = f"{self.name}: epoch {epoch} of {self.epochs}, mean loss {mean:.4f}, {seconds:.1f} s"
            print(line, file=sys.stderr, flush=True)
        if n % 39 == 1:
            self.bar.set_postfix(epoch=epoch, loss=f"{float(loss):.3f}", refresh=False)
            if self.curve is not None:
                self.draw()

    def estimate(self, n):
        """Say how long it will take, from the time of 20 iterations: the first ones compile, and are left out."""
        gather(self.losses[-1])  # a GPU may still be at work
        before, self.timed = self.timed, time.perf_counter()
        if n == 30:
            self.bar.write(f"{self.name} training: about {(self.timed - before) / 20 * self.numIterations:.0f} s")

    def draw(self):
        """Bring the curve up to date."""
        axes = self.curve.axes
        self.curve.set_data(np.arange(1, len(self.losses) + 1), [float(loss) for loss in self.losses])
        axes.relim()
        axes.autoscale_view()
        axes.set_ylim(bottom=0)
        elapsed = time.strftime("%H:%M:%S", time.gmtime(time.perf_counter() - self.start))
        axes.set_title(f"Epoch: {self.epoch}, Elapsed: {elapsed}")
        if shows_windows():
            self.figure.canvas.draw_idle()
            self.figure.canvas.flush_events()

    def close(self):
        """End of training: (losses, seconds)."""
        self.bar.close()
        if self.losses:
            gather(self.losses[-1])  # a GPU may still be at work
        seconds = time.perf_counter() - self.start
        if self.curve is not None and self.losses:
            self.draw()
            show(self.figure, f"digits_loss_{self.name.lower()}")
        return [float(loss) for loss in self.losses], seconds


class Stopped(Exception):
    """Ctrl-C; carries what is known so far."""


def train(name, gradientsFcn, parameters, state, mbq, options):
    """Train by Adam and return (parameters, state, losses, seconds)."""
    # Initialize parameters for Adam.
    trailingAvg = []
    trailingAvgSq = []

    progress = Progress(name, options)
    iteration = 0
    stopped = False
    try:
        # Loop over epochs.
        for epoch in range(1, options.epochs + 1):
            # Shuffle data.
            shuffle(mbq)

            # Loop over mini-batches
            while hasdata(mbq):
                iteration = iteration + 1
                dlX, dlT1, dlT2 = next(mbq)

                if options.whole_step:
                    # Everything in one function: gradients, state, loss and the Adam update.
                    parameters, state, loss, trailingAvg, trailingAvgSq = dlfeval(
                        gradientsFcn, parameters, dlX, dlT1, dlT2, state, trailingAvg, trailingAvgSq,
                        dlarray(np.float32(iteration)),
                    )  # fmt: skip
                else:
                    # Evaluate the model gradients, state, and loss.
                    gradients, state, loss = dlfeval(gradientsFcn, parameters, dlX, dlT1, dlT2, state)

                    # Update the network parameters using the Adam optimizer.
                    parameters, trailingAvg, trailingAvgSq = adamupdate(
                        parameters, gradients, trailingAvg, trailingAvgSq, iteration
                    )

                # Display the training progress.
                progress.update(epoch, loss)
    except KeyboardInterrupt:
        stopped = True
    losses, seconds = progress.close()
    if stopped:
        raise Stopped(name, parameters, state, losses, seconds)
    return parameters, state, losses, seconds


# ---- Figures ---------------------------------------------------------------------------------------------------


def has_display():
    """Whether figures can be shown in windows."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def pyplot():
    """matplotlib.pyplot, drawing to files where there is no display."""
    import matplotlib

    if not has_display():
        matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def shows_windows():
    """Whether figures appear in windows: there is a display, and a toolkit with which matplotlib can draw there."""
    return has_display() and pyplot().get_backend().lower() != "agg"


def show(figure, name):
    """Show a figure in its window, or write it to a PNG file where there is no display."""
    figure.tight_layout()
    if shows_windows():
        figure.show()
    else:
        path = Path(f"{name}.png")
        figure.savefig(path, dpi=120)
        print(f"Figure written to {path}")


def bar_chart(name, title, baseline, accelerated):
    """Two times beside each other."""
    figure, axes = pyplot().subplots(num=title)
    axes.bar(["Baseline", "Accelerated"], [baseline, accelerated])
    axes.set(ylabel="Time (seconds)", title=title)
    show(figure, name)


def test_figure(images, labels, angles, labelsPred, anglesPred):
    """Some test digits, each turned upright by its predicted angle's line, with predicted class and angle."""
    figure, grid = pyplot().subplots(4, 6, figsize=(9, 7), num="Test digits")
    for i, axes in zip(np.linspace(0, len(labels) - 1, grid.size).astype(int), grid.flat):
        axes.imshow(images[:, :, 0, i], cmap="gray_r")
        lean = np.deg2rad(anglesPred[i, 0])
        axes.plot([13.5 - 13 * np.sin(lean), 13.5 + 13 * np.sin(lean)], [13.5 + 13 * np.cos(lean),
                  13.5 - 13 * np.cos(lean)], color=(0.85, 0.325, 0.098), linewidth=1)  # fmt: skip
        right = labelsPred[i] == labels[i]
        axes.set_title(f"{labelsPred[i]}, {anglesPred[i, 0]:.0f}° (is {labels[i]}, {angles[i, 0]:.0f}°)",
                       fontsize=8, color="black" if right else "red")  # fmt: skip
        axes.set(xticks=[], yticks=[], xlim=(-0.5, 27.5), ylim=(27.5, -0.5))
    show(figure, "digits_test")


# ---- The example -----------------------------------------------------------------------------------------------


def load(data):
    """Training and test data: (images, labels, angles) each."""
    if data in ("generated", "handwritten"):
        return digitTrain4DArrayData(Source=data), digitTest4DArrayData(Source=data)
    return digitTrain4DArrayData(Path=data), digitTest4DArrayData(Path=data)


def arguments(argv=None):
    """What the user asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="generated", help="generated, handwritten, or a folder with digit data")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32, help="mini-batch size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["auto", "cpu", "gpu"], default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--plots", choices=["none", "training-progress"], default="none")
    parser.add_argument("--whole-step", action="store_true", help="accelerate the solver's update too")
    options = parser.parse_args(argv)
    for name in ("epochs", "batch"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.seed < 0:
        parser.error(f"--seed must be 0 or more, got {options.seed}")
    return options


def main(argv=None):
    """Run the example; returns its results as a struct."""
    options = arguments(argv)
    results = struct()
    rng(options.seed)

    # Load the training data and put it into one datastore.
    (imagesTrain, labelsTrain, anglesTrain), (imagesTest, labelsTest, anglesTest) = load(options.data)
    dsImagesTrain = arrayDatastore(imagesTrain, IterationDimension=3)
    dsLabelsTrain = arrayDatastore(labelsTrain)
    dsAnglesTrain = arrayDatastore(anglesTrain)
    dsTrain = combine(dsImagesTrain, dsLabelsTrain, dsAnglesTrain)

    classNames[:] = categories(labelsTrain)
    numClasses = len(classNames)
    numResponses = anglesTrain.shape[1]
    numObservations = len(labelsTrain)
    options.iterationsPerEpoch = numObservations // options.batch
    if options.iterationsPerEpoch == 0:
        raise SystemExit(f"--batch {options.batch} is more than the {numObservations} observations. Give a smaller.")

    # The test data likewise.
    dsImagesTest = arrayDatastore(imagesTest, IterationDimension=3)
    dsLabelsTest = arrayDatastore(labelsTest)
    dsAnglesTest = arrayDatastore(anglesTest)
    dsTest = combine(dsImagesTest, dsLabelsTest, dsAnglesTest)

    # Create the model, where it will be trained, and a copy of it for the accelerated training.
    parametersBaseline, stateBaseline = modelParameters(numClasses, numResponses)
    if options.device == "gpu" or (options.device == "auto" and canUseGPU()):
        parametersBaseline, stateBaseline = dlupdate(gpuArray, parametersBaseline), dlupdate(gpuArray, stateBaseline)
    parametersAccelerated, stateAccelerated = parametersBaseline.copy(), stateBaseline.copy()

    mbq = minibatchqueue(
        dsTrain,
        MiniBatchSize=options.batch,
        MiniBatchFcn=preprocessMiniBatch,
        MiniBatchFormat=["SSCB", "", ""],
        PartialMiniBatch="discard",
        OutputEnvironment=options.device,
    )
    mbqAccelerated = partition(mbq, 1, 0)  # the same queue once more: both trainings shuffle it alike
    gradientsFcn = modelStep if options.whole_step else modelGradients

    plan = f"Training twice, {options.epochs} epochs of {options.iterationsPerEpoch} iterations each: first without"
    print(plan, "acceleration, which is slow." + " --epochs 2 shows everything in seconds." * (options.epochs > 2))
    try:
        # Train the model.
        rng(options.seed + 1)
        parametersBaseline, stateBaseline, results.lossBaseline, results.elapsedBaseline = train(
            "Baseline", gradientsFcn, parametersBaseline, stateBaseline, mbq, options
        )
        print(f"elapsedBaseline = {results.elapsedBaseline:.4f}")

        # Train the model with the accelerated function, on the same mini-batches.
        accfun = dlaccelerate(gradientsFcn)
        clearCache(accfun)
        rng(options.seed + 1)
        parametersAccelerated, stateAccelerated, results.lossAccelerated, results.elapsedAccelerated = train(
            "Accelerated", accfun, parametersAccelerated, stateAccelerated, mbqAccelerated, options
        )
    except Stopped as stop:
        name, _, _, losses, seconds = stop.args
        done = f"{len(losses)} iterations in {seconds:.1f} s"
        last = f", loss of the last one {losses[-1]:.4f}" if losses else ""
        print(f"Stopped. {name} training did {done}{last}.")
        if "elapsedBaseline" in results:
            print(f"Baseline training: {len(results.lossBaseline)} iterations in {results.elapsedBaseline:.1f} s.")
        results[f"loss{name}"] = losses
        return results
    print(f"elapsedAccelerated = {results.elapsedAccelerated:.4f}")

    # Check the efficiency of the accelerated function: the share of calls that reused a trace.
    results.HitRate = accfun.HitRate
    print(f"accfun.HitRate = {accfun.HitRate:.4f}")

    # Compare the training times.
    bar_chart("digits_training_time", "Training Time", results.elapsedBaseline, results.elapsedAccelerated)
    results.speedup = results.elapsedBaseline / results.elapsedAccelerated
    print(f"speedup = {results.speedup:.4f}")

    # Predict without acceleration. The test data need no labels: one output.
    numOutputs = 1
    mbqTest = minibatchqueue(
        dsTest,
        numOutputs,
        MiniBatchSize=options.batch,
        MiniBatchFcn=preprocessMiniBatchPredictors,
        MiniBatchFormat="SSCB",
        OutputEnvironment=options.device,
    )
    start = time.perf_counter()
    labelsPred, anglesPred = modelPredictions(model, parametersBaseline, stateBaseline, mbqTest, classNames)
    results.elapsedPredictionBaseline = time.perf_counter() - start
    print(f"elapsedPredictionBaseline = {results.elapsedPredictionBaseline:.4f}")

    # modelPredictions takes a queue and cannot be accelerated; the model function can.
    accfun2 = dlaccelerate(model)
    clearCache(accfun2)
    reset(mbqTest)
    start = time.perf_counter()
    labelsPred, anglesPred = modelPredictions(accfun2, parametersBaseline, stateBaseline, mbqTest, classNames)
    results.elapsedPredictionAccelerated = time.perf_counter() - start
    print(f"elapsedPredictionAccelerated = {results.elapsedPredictionAccelerated:.4f}")
    results.HitRatePrediction = accfun2.HitRate
    print(f"accfun2.HitRate = {accfun2.HitRate:.4f}")

    # Compare the prediction times.
    bar_chart(
        "digits_prediction_time",
        "Prediction Time",
        results.elapsedPredictionBaseline,
        results.elapsedPredictionAccelerated,
    )
    results.speedupPrediction = results.elapsedPredictionBaseline / results.elapsedPredictionAccelerated
    print(f"speedup = {results.speedupPrediction:.4f}")

    # How good are the predictions? (of the accelerated training's model, too)
    reset(mbqTest)
    labelsAcc, anglesAcc = modelPredictions(accfun2, parametersAccelerated, stateAccelerated, mbqTest, classNames)
    for name, labels, angles in (("Baseline", labelsPred, anglesPred), ("Accelerated", labelsAcc, anglesAcc)):
        accuracy = 100 * np.mean(labels == labelsTest)
        rmse = np.sqrt(np.mean((angles - anglesTest) ** 2))
        results[f"accuracy{name}"], results[f"angleRMSE{name}"] = accuracy, rmse
        print(f"{name} model on the test data: accuracy {accuracy:.2f} %, angle error (RMSE) {rmse:.2f} degrees")
    test_figure(imagesTest, labelsTest, anglesTest, labelsPred, anglesPred)

    if shows_windows():
        pyplot().show()  # keep the windows open until the user closes them
    return results


if __name__ == "__main__":
    warnings.simplefilter("default")
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped.")
    except (DataError, DeviceError, OptionError) as error:  # --data or --device asked for what is not there
        sys.exit(str(error))
