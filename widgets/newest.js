// Widgets drawn by React write a value back to their model once they have drawn it (Panel 1.9.4, `useState`). When the
// server has set a newer one meanwhile, the older one returns as if a person had chosen it, here and on the server:
// an answer says "Reading…" for ever, a file is saved twice, or not at all. Such a write is left out.

const PATIENCE = 1000; // ms until a value that the server had replaced counts as chosen by a person in any case

function keepNewest(proto) {
  if (proto.setv.keepsNewest) return;
  const setv = proto.setv, replaced = new WeakMap(), drawn = new WeakMap();
  const valueOf = (model, name) => {
    const property = model.properties[name];
    return property && !property.is_unset ? property.get_value() : undefined;
  };

  // Whether React draws what this model holds. Others write only what a person did, and so do models that just left.
  const byReact = (data) => {
    if (data.document && !drawn.has(data)) {
      const holds = (model) => model.type.endsWith("ReactComponent") && valueOf(model, "data") === data;
      drawn.set(data, [...data.document.all_models].some(holds));
    }
    return drawn.get(data);
  };

  const old = (model, name) => replaced.get(model)?.get(name);

  const keep = (model, name, value) => {
    if (!replaced.has(model)) replaced.set(model, new Map());
    const names = replaced.get(model), values = (names.get(name) ?? new Set()).add(value);
    values.delete(valueOf(model, name));
    names.set(name, values);
    setTimeout(() => values.delete(value), PATIENCE);
  };

  proto.setv = function (changes, options) {
    const names = Object.keys(changes);
    if (!this.document) {
      setv.call(this, changes, options); // still being made
    } else if (options?.sync === false) {
      const before = names.map((name) => valueOf(this, name));
      setv.call(this, changes, options);
      // What is no longer as the server set it was reset at once, as events are.
      names.forEach((name, i) => valueOf(this, name) === changes[name] && byReact(this) && keep(this, name, before[i]));
    } else if (!(names.length === 1 && old(this, names[0])?.has(changes[names[0]]))) {
      setv.call(this, changes, options);
      for (const name of names) old(this, name)?.clear(); // the newest has been drawn, or a person chose
    }
  };
  proto.setv.keepsNewest = true;
}

if (window.Bokeh?.require) keepNewest(window.Bokeh.require("core/has_props").HasProps.prototype);

export default { render() {} };
