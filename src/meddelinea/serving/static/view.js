// Scan and masks on two canvases: three planes, and the organs in 3D.

const { Niivue, NVImage, SLICE_TYPE, SHOW_RENDER, DRAG_MODE } = globalThis.niivue;

const SLICES = { all: SLICE_TYPE.MULTIPLANAR, axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL };
const OPTIONS = { backColor: [0, 0, 0, 1], dragAndDropEnabled: false, viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "", logLevel: "error", loadingText: "" };
const PLACES = { this: 1, uncertainty: 2, earlier: 3, difference: 4 }; // among the volumes of the planes; the scan is 0
const TRANSPARENT_BELOW_MIN = 1; // of NiiVue's kinds of colour maps, which its bundle does not name
const UNSURE = [20, 60]; // per cent, from just visible to the brightest
const DIFFERENT = { name: "different", id: 1, colour: [255, 255, 0] };

const read = (buffer, name) => NVImage.loadFromUrl({ url: buffer, name });

function colours(organs, hidden) {
  const table = [{ name: "background", id: 0, colour: [0, 0, 0] }, ...organs];
  return {
    R: table.map((organ) => organ.colour[0]),
    G: table.map((organ) => organ.colour[1]),
    B: table.map((organ) => organ.colour[2]),
    A: table.map((organ) => (organ.id === 0 || hidden.has(organ.name) ? 0 : 255)),
    I: table.map((organ) => organ.id),
    labels: table.map((organ) => organ.name),
  };
}

function sameGrid(a, b) {
  return String(a.hdr.dims.slice(0, 4)) === String(b.hdr.dims.slice(0, 4)) && String(a.hdr.affine) === String(b.hdr.affine);
}

export class View {
  #planes;
  #solid;
  #organs = new Map(); // of each mask by its place, as {name, id, colour}
  #hidden = new Set();
  #opacity = 0.5;
  #shown = "this";

  static async on(planesCanvas, solidCanvas, onLocation) {
    const view = new View();
    view.#planes = new Niivue({
      ...OPTIONS,
      multiplanarShowRender: SHOW_RENDER.NEVER,
      isRadiologicalConvention: true,
      isCornerOrientationText: true,
      sagittalNoseLeft: true,
      crosshairColor: [1, 0.9, 0.3, 0.8],
      crosshairWidth: 1,
      fontColor: [1, 1, 1, 1],
      dragMode: DRAG_MODE.pan,
    });
    view.#solid = new Niivue({ ...OPTIONS, sliceType: SLICE_TYPE.RENDER, crosshairWidth: 0, isOrientCube: true });
    await view.#planes.attachToCanvas(planesCanvas);
    await view.#solid.attachToCanvas(solidCanvas);
    view.#planes.onLocationChange = (data) => onLocation(view.#describe(data));
    planesCanvas.addEventListener("keydown", (event) => view.#move(event));
    solidCanvas.addEventListener("keydown", (event) => view.#turn(event));
    return view;
  }

  // Shows a scan with its mask and its uncertainty; all are NIfTI files in memory.
  async open(scan, mask, uncertainty, organs) {
    this.#empty(this.#planes);
    this.#empty(this.#solid);
    this.#organs = new Map([[PLACES.this, organs]]);
    this.#hidden = new Set();
    this.#shown = "this";
    this.#planes.addVolume(await read(scan, "scan.nii"));
    const image = await read(mask.slice(0), "mask.nii.gz");
    this.#planes.addVolume(image);
    const unsure = await read(uncertainty, "uncertainty.nii.gz");
    unsure.colormap = "warm";
    unsure.colormapType = TRANSPARENT_BELOW_MIN;
    [unsure.cal_min, unsure.cal_max] = UNSURE;
    this.#planes.addVolume(unsure);
    this.#solid.addVolume(await read(mask, "mask.nii.gz"));
    this.#paint();
    this.#goTo(image);
    this.#solid.setRenderAzimuthElevation(200, 10);
  }

  // Adds an earlier mask of the same scan; true where it can be told voxel by voxel where the two differ.
  async addEarlier(mask, organs) {
    this.dropEarlier();
    const image = await read(mask, "earlier.nii.gz");
    this.#planes.addVolume(image);
    this.#organs.set(PLACES.earlier, organs);
    const ours = this.#planes.volumes[PLACES.this];
    if (!sameGrid(ours, image)) return false;
    const names = (list) => new Map(list.map((organ) => [organ.id, organ.name]));
    const [here, there] = [names(this.#organs.get(PLACES.this)), names(organs)];
    const difference = ours.clone();
    difference.img = ours.img.map((id, index) => Number(here.get(id) !== there.get(image.img[index])));
    this.#planes.addVolume(difference);
    this.#organs.set(PLACES.difference, [DIFFERENT]);
    this.#paint();
    return true;
  }

  dropEarlier() {
    while (this.#planes.volumes.length > PLACES.earlier) this.#planes.removeVolume(this.#planes.volumes.at(-1));
    this.#organs.delete(PLACES.earlier);
    this.#organs.delete(PLACES.difference);
    this.show("this");
  }

  show(which) {
    this.#shown = which;
    this.#paint();
  }

  hide(names) {
    this.#hidden = new Set(names);
    this.#paint();
  }

  setOpacity(opacity) {
    this.#opacity = opacity;
    this.#paint();
  }

  setWindow(low, high) {
    const scan = this.#planes.volumes[0];
    scan.cal_min = low ?? scan.robust_min;
    scan.cal_max = high ?? scan.robust_max;
    this.#planes.updateGLVolume();
  }

  setPlane(name) {
    if (name in SLICES) this.#planes.setSliceType(SLICES[name]);
    // A canvas that was hidden had no size.
    requestAnimationFrame(() => [this.#planes, this.#solid].forEach((viewer) => viewer.resizeListener()));
  }

  #empty(viewer) {
    while (viewer.volumes.length) viewer.removeVolume(viewer.volumes.at(-1));
  }

  #paint() {
    this.#organs.forEach((organs, place) => this.#planes.volumes[place].setColormapLabel(colours(organs, this.#hidden)));
    this.#planes.volumes.slice(1).forEach((volume, index) => {
      volume.opacity = index + 1 === PLACES[this.#shown] ? this.#opacity : 0;
    });
    this.#planes.updateGLVolume();
    const [solid] = this.#solid.volumes;
    if (solid) {
      solid.setColormapLabel(colours(this.#organs.get(PLACES.this), this.#hidden));
      this.#solid.updateGLVolume();
    }
  }

  // Puts the cross-hair where there is most to see: the middle of all that the mask marks.
  #goTo(mask) {
    const [, columns, rows, slices] = mask.hdr.dims;
    const sums = [0, 0, 0];
    let count = 0;
    for (let k = 0, index = 0; k < slices; k++)
      for (let j = 0; j < rows; j++)
        for (let i = 0; i < columns; i++, index++)
          if (mask.img[index]) {
            sums[0] += i;
            sums[1] += j;
            sums[2] += k;
            count += 1;
          }
    if (!count) return;
    const [i, j, k] = sums.map((sum) => Math.round(sum / count)); // a voxel's middle, where steps by key stay
    const mm = mask.hdr.affine.slice(0, 3).map(([a, b, c, d]) => a * i + b * j + c * k + d);
    this.#planes.scene.crosshairPos = this.#planes.mm2frac([...mm, 1]);
    this.#planes.createOnLocationChange();
    this.#planes.drawScene();
  }

  #describe(data) {
    const [x, y, z] = data.mm;
    const side = (value, plus, minus) => `${Math.abs(value).toFixed(0)} mm ${value < 0 ? minus : plus}`;
    const place = [side(x, "right", "left"), side(y, "front", "back"), side(z, "up", "down")].join(", ");
    const at = PLACES[this.#shown];
    const value = data.values[at]?.value;
    if (this.#shown === "uncertainty") return `${place}: wrong with a probability of ${value.toFixed(0)} %`;
    const organ = this.#organs.get(at)?.find((candidate) => candidate.id === value);
    return `${place}: value ${data.values[0].value.toFixed(0)}${organ ? `, ${organ.name}` : ""}`;
  }

  #move(event) {
    const steps = { ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };
    const step = steps[event.key]; // the patient's right is at the picture's left
    if (!step) return;
    event.preventDefault();
    this.#planes.moveCrosshairInVox(...step);
  }

  #turn(event) {
    const steps = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, 10], ArrowDown: [0, -10] };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const { renderAzimuth, renderElevation } = this.#solid.scene;
    this.#solid.setRenderAzimuthElevation(renderAzimuth + step[0], renderElevation + step[1]);
  }
}
