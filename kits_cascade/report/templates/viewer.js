const { Niivue, NVImage, NVMesh } = globalThis.niivue;
const one = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const scene = JSON.parse(one("#scene").textContent);
const stage = one("#stage");
const AXIAL = 0, CORONAL = 1, SAGITTAL = 2, RENDER = 4;
const SINGLE = { axial: AXIAL, coronal: CORONAL, sagittal: SAGITTAL };
const narrow = matchMedia("(max-width: 760px)");
const shared = { logLevel: "silent", loadingText: "", dragAndDropEnabled: false, isResizeCanvas: true };

const slices = new Niivue({
  ...shared, backColor: [0, 0, 0, 1], isRadiologicalConvention: true, showAllOrientationMarkers: true, fontColor: [1, 1, 1, 1],
  fontMinPx: 15, crosshairColor: [0.42, 0.72, 0.92, 0.85], crosshairWidth: 1, crosshairGap: 6, sagittalNoseLeft: true,
});
const surfaces = new Niivue({
  ...shared, backColor: [0.02, 0.028, 0.04, 1], isOrientCube: true, show3Dcrosshair: false, sliceType: RENDER,
});

const bytes = (element) => Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0)).buffer;
const press = (buttons, chosen) => buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === chosen)));

// Unpacked while WebGL gets ready.
function unpack() {
  const [low, high] = scene.window;
  return Promise.all([
    NVImage.loadFromBase64({ base64: one("#ct").textContent, name: "ct.nii.gz", colormap: "gray", cal_min: low, cal_max: high }),
    NVImage.loadFromBase64({ base64: one("#overlay").textContent, name: "labels.nii.gz", opacity: 0.45 }),
  ]);
}

function addVolumes([ct, labels]) {
  const channel = (index) => scene.colours.map((colour) => colour[index]);
  labels.setColormapLabel({
    R: channel(0), G: channel(1), B: channel(2), A: [0, 130, 255, 255], I: [0, 1, 2, 3], labels: scene.names,
  });
  slices.updateGLVolume = () => {}; // with the labels, for both
  slices.addVolume(ct);
  delete slices.updateGLVolume;
  slices.addVolume(labels);
}

async function loadMeshes() {
  for (const element of all("script.mesh")) {
    const { rgb, opacity, lesion } = element.dataset;
    const colour = new Uint8Array([...rgb.split(",").map(Number), 255]);
    const mesh = await NVMesh.readMesh(bytes(element), `surface${lesion}.mz3`, surfaces.gl, Number(opacity), colour, true);
    mesh.lesion = Number(lesion);
    surfaces.addMesh(mesh);
  }
  surfaces.onAzimuthElevationChange = markSides;
  surfaces.setRenderAzimuthElevation(180, 8); // from the front: the patient's right is on the left
}

function arrange(view) {
  stage.dataset.view = view;
  const half = 0.485, next = 0.5, edge = 0.015; // an edge for the letters at the sides
  const tiles = view in SINGLE ? [{ sliceType: SINGLE[view], position: [edge, edge, 1 - 2 * edge, 1 - 2 * edge] }]
    : narrow.matches ? [{ sliceType: AXIAL, position: [edge, 0, 1 - 2 * edge, half] }, { sliceType: CORONAL, position: [edge, next, half - edge, half] }]
    : [
      { sliceType: AXIAL, position: [edge, 0, half - edge, half] },
      { sliceType: CORONAL, position: [edge, next, half - edge, half] },
      { sliceType: SAGITTAL, position: [next + edge, next, half - edge, half] },
    ];
  slices.setCustomLayout(tiles);
  slices.resizeListener();
  if (surfaces.canvas) {
    surfaces.resizeListener();
    frame();
  }
}

function frame() {
  const { width, height } = surfaces.canvas;
  surfaces.setScale(width < height ? 0.8 : 1.2);
}

function show(point) {
  slices.scene.crosshairPos = slices.mm2frac(point);
  slices.createOnLocationChange();
  slices.drawScene();
}

slices.onLocationChange = ({ mm, values }) => {
  const label = scene.names[Math.round(values[1]?.value ?? 0)] ?? "";
  document.body.dataset.label = label;
  const place = [...mm].slice(0, 3).map((value) => value.toFixed(0)).join(" ");
  one("#here").value = `${place} mm  ·  ${Math.round(values[0].value)} HU${label ? `  ·  ${label}` : ""}`;
};

function choose(number) {
  press(all("[data-lesion][aria-pressed]"), one(`button[data-lesion="${number}"]`));
  show(scene.places[number]);
  light(number);
  surfaces.drawScene();
}

function light(number) {
  for (const mesh of surfaces.meshes) {
    if (mesh.lesion >= 0) { mesh.opacity = mesh.lesion === number ? 1 : 0.3; mesh.updateMesh(surfaces.gl); }
  }
}

// Which side of the patient the 3-D view has on the left of the screen; from the side neither.
function markSides(azimuth) {
  const front = Math.cos(((azimuth - 180) * Math.PI) / 180);
  const [left, right] = front > 0.25 ? ["R", "L"] : front < -0.25 ? ["L", "R"] : ["", ""];
  one("#near-left").textContent = left;
  one("#near-right").textContent = right;
}

function listen() {
  const group = (attribute, act) => {
    const buttons = all(`button[data-${attribute}]`);
    buttons.forEach((button) => button.addEventListener("click", () => { press(buttons, button); act(button.dataset[attribute]); }));
  };
  all("button[data-lesion]").forEach((button) => button.addEventListener("click", () => choose(Number(button.dataset.lesion))));
  group("view", arrange);
  all("button[data-spot]").forEach((button) => button.addEventListener("click", () => show(scene.spots[button.dataset.spot])));
  one("#labels").addEventListener("input", (event) => slices.setOpacity(1, Number(event.target.value) / 100));
  group("window", (range) => {
    [slices.volumes[0].cal_min, slices.volumes[0].cal_max] = range.split(",").map(Number);
    slices.updateGLVolume();
  });
  one("#kidney").addEventListener("input", (event) => {
    const kidney = surfaces.meshes.find((mesh) => mesh.lesion < 0);
    if (kidney) { kidney.opacity = Number(event.target.value) / 100; kidney.updateMesh(surfaces.gl); surfaces.drawScene(); }
  });
  one("a[href='#licence']").addEventListener("click", (event) => { event.preventDefault(); one("#licence").showModal(); });
  narrow.addEventListener("change", () => arrange(stage.dataset.view));
}

async function start() {
  await drawn(); // the list of lesions is there to read before the rest is there to see
  await undrawn(slices, async () => {
    const volumes = unpack();
    await slices.attachToCanvas(one("#slices"), false);
    addVolumes(await volumes);
    arrange("all");
    show(scene.places[0] ?? [...slices.frac2mm([0.5, 0.5, 0.5])].slice(0, 3));
  });
  reach("slices");
  await drawn(); // a second context takes as long again: nobody should wait for it to see the slices
  await undrawn(surfaces, async () => {
    await surfaces.attachToCanvas(one("#surfaces"), true);
    await loadMeshes();
    surfaces.resizeListener();
    frame();
    light(0);
  });
  press(all("[data-lesion][aria-pressed]"), one('button[data-lesion="0"]'));
  listen();
  reach("ready");
}

// NiiVue draws after every step, and each costs a processor that has to draw by itself a third of a second: once will do.
async function undrawn(view, steps) {
  view.drawScene = () => {};
  await steps();
  delete view.drawScene;
  view.drawScene();
}

function reach(state) {
  performance.mark(state);
  document.body.dataset.state = state;
}

// Once the browser has painted; a page in the background paints nothing, and goes on all the same.
const drawn = () => new Promise((done) => {
  setTimeout(done, 200);
  requestAnimationFrame(() => setTimeout(done));
});

start().catch((error) => {
  document.body.dataset.state = "failed";
  one("#message").textContent = `This page could not be drawn: ${error.message}. It needs a browser with WebGL 2.`;
});
