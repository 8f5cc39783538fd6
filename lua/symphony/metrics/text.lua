--- Families of metrics as the Prometheus text format, version 0.0.4, has them:
--- https://prometheus.io/docs/instrumenting/exposition_formats/. Pure.
local M = {}

M.CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

local in_text = { ["\\"] = "\\\\", ["\n"] = "\\n" }
local in_label = { ["\\"] = "\\\\", ["\n"] = "\\n", ['"'] = '\\"' }

--- A number as Prometheus reads it back without loss.
function M.number(v)
  if math.type(v) == "integer" then return tostring(v) end
  if v ~= v then return "NaN" end
  if v == math.huge then return "+Inf" end
  if v == -math.huge then return "-Inf" end
  local whole = math.tointeger(v)
  if whole and whole > -1e15 and whole < 1e15 then return ("%d"):format(whole) end
  local text = ("%.15g"):format(v)
  return tonumber(text) == v and text or ("%.17g"):format(v)
end

--- name="value" of each label, in the order of the names; "" without any. A value is text of any bytes: what is not
--- UTF-8 is shown as "?" (the whole answer would be refused for it).
function M.labels(labels)
  if not labels then return "" end
  local names = {}
  for name in pairs(labels) do names[#names + 1] = name end
  if #names > 1 then table.sort(names) end
  for i, name in ipairs(names) do
    local value = tostring(labels[name])
    if not utf8.len(value) then value = value:gsub("[\x80-\xff]", "?") end
    names[i] = name .. '="' .. value:gsub('[\\\n"]', in_label) .. '"'
  end
  return table.concat(names, ",")
end

local function braced(text)
  return text == "" and "" or "{" .. text .. "}"
end

-- Limits as labels; there are few tables of them, and most lines of a scrape are buckets.
local by_limits = setmetatable({}, { __mode = "k" })

local function le_of(limits)
  local list = by_limits[limits]
  if not list then
    list = {}
    for i, limit in ipairs(limits) do list[i] = 'le="' .. M.number(limit) .. '"} ' end
    list[#list + 1] = 'le="+Inf"} '
    by_limits[limits] = list
  end
  return list
end

-- As Prometheus has it: each bucket counts all up to its limit.
local function add_histogram(out, name, labels, sample)
  local total, counts = 0, sample.value
  local start = name .. "_bucket{" .. labels .. (labels == "" and "" or ",")
  for i, le in ipairs(le_of(sample.limits)) do
    total = total + counts[i]
    out[#out + 1] = start .. le .. total
  end
  out[#out + 1] = name .. "_sum" .. braced(labels) .. " " .. M.number(counts.sum)
  out[#out + 1] = name .. "_count" .. braced(labels) .. " " .. total
end

-- Families of one name, which several sources may have, in one: the format wants their lines together.
local function merge(families)
  local list, by_name = {}, {}
  for _, family in ipairs(families) do
    local first = by_name[family.name]
    if not first then
      first = { name = family.name, type = family.type, help = family.help, samples = {} }
      by_name[family.name] = first
      list[#list + 1] = first
    elseif first.type ~= family.type then
      error(("%s is a %s and a %s"):format(family.name, first.type, family.type), 3)
    end
    table.move(family.samples, 1, #family.samples, #first.samples + 1, first.samples)
  end
  table.sort(list, function(a, b) return a.name < b.name end)
  return list
end

--- @families: an array of {name, type = "counter"|"gauge"|"histogram", help, samples = {{value, labels or nil}, ...}};
--- the value of a histogram is {counts..., sum =} as sym.metrics gives it, its sample has limits besides. A family
--- without samples is left out. Raises when two of one name are of different types.
function M.render(families)
  local out = {}
  for _, family in ipairs(merge(families)) do
    if #family.samples > 0 then
      out[#out + 1] = "# HELP " .. family.name .. " " .. family.help:gsub("[\\\n]", in_text)
      out[#out + 1] = "# TYPE " .. family.name .. " " .. family.type
    end
    for _, sample in ipairs(family.samples) do
      local labels = M.labels(sample.labels)
      if family.type == "histogram" then
        add_histogram(out, family.name, labels, sample)
      else
        out[#out + 1] = family.name .. braced(labels) .. " " .. M.number(sample.value)
      end
    end
  end
  out[#out + 1] = ""
  return table.concat(out, "\n")
end

return M
