// Which slider, moved alone, makes an impossible choice possible.

/** The nearest such value of each slider; those of the mesh last, as it is what was chosen. */
function remedies(controls, problemOf) {
  const mesh = PAGE.constants.ready,
    order = [...Object.keys(controls.sliders).filter((name) => !mesh.includes(name)), ...mesh];
  return order.flatMap((name) => {
    const slider = controls.sliders[name],
      at = slider.values.indexOf(slider.value);
    const near = slider.values.map((value, i) => ({ value, far: Math.abs(i - at) })).filter(({ far }) => far).sort((a, b) => a.far - b.far);
    const fits = near.find(({ value }) => !problemOf(controls.read({ [name]: value })));
    return fits ? [{ slider, value: fits.value, far: fits.far }] : [];
  });
}

/** A button for each, that names the slider and moves it. */
function adviceNodes(found) {
  if (!found.length) return [make("p", {}, "No slider alone makes it possible: move two, or go back to the explained mesh.")];
  const button = ({ slider, value }) => {
    const node = make("button", { type: "button", "data-slider": slider.name }, `Set slider “${slider.text}” to ${slider.words ? slider.words(value) : grouped(value)}`);
    node.addEventListener("click", () => {
      slider.value = value;
      slider.change();
      slider.input.focus();
    });
    return node;
  };
  return [make("p", {}, "What would do:"), make("div", { class: "bar-of-buttons" }, found.map(button))];
}
