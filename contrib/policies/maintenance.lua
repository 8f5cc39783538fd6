-- Changes of nodes only when they are allowed: within windows, or while nothing forbids them. The policy has no clock;
-- every minute it writes whether a window is open into the key maintenance/open, and decides by that. Times are UTC.
--
--   symphony kv put maintenance/windows 'Sat 22:00-04:00, Tue 02:00-03:30, Sun 00:00-24:00'
--   symphony policy set maintenance contrib/policies/maintenance.lua
--   symphony kv put maintenance/override open      (or closed: no change at all; delete it to go by the windows)
--
-- Without windows everything is open. A node can always be drained, and managers stay as they are.

local WINDOWS, OPEN, OVERRIDE = "maintenance/windows", "maintenance/open", "maintenance/override"
local DAYS = { Sun = 0, Mon = 1, Tue = 2, Wed = 3, Thu = 4, Fri = 5, Sat = 6 }
local DAY, WEEK = 1440, 7 * 1440 -- minutes

-- The minute of the week, from Sunday 00:00; 1970-01-01 was a Thursday.
local function minute_of_week(now)
  return (now // 60 + 4 * DAY) % WEEK
end

-- The minutes from 00:00 to a time; nil when there is none.
local function minutes(h, m)
  h, m = tonumber(h), tonumber(m)
  return h and m and m < 60 and h * 60 + m <= DAY and h * 60 + m or nil
end

-- Is @minute within one of @windows? nil when they cannot be read.
local function is_open(windows, minute)
  local open = false
  for window in windows:gmatch("[^,]+") do
    local day, h1, m1, h2, m2 = window:match("^%s*(%a%a%a)%s+(%d%d):(%d%d)%-(%d%d):(%d%d)%s*$")
    local from, to = minutes(h1, m1), minutes(h2, m2)
    if not DAYS[day] or not from or not to then return nil end
    local length = (to - from) % DAY
    if length == 0 then length = DAY end
    if (minute - DAYS[day] * DAY - from) % WEEK < length then open = true end
  end
  return open
end

local function look(input)
  local windows = get("/kv/" .. WINDOWS)
  local open, was = true, get("/kv/" .. OPEN)
  if windows and windows ~= "" then open = is_open(windows, minute_of_week(input.now)) end
  if open == nil then
    if was == "no" then return end
    local shown = windows:gsub("[^%g ]", "?"):sub(1, 80)
    return { kv_put(OPEN, "no"), event(("maintenance windows cannot be read: \"%s\""):format(shown)) }
  end
  local now = open and "yes" or "no"
  if was == now then return end
  if not was then return { kv_put(OPEN, now) } end
  return { kv_put(OPEN, now), event("maintenance window " .. (open and "opens" or "closes")) }
end

local function change(input)
  local override = get("/kv/" .. OVERRIDE)
  if override == "open" then return end
  if override ~= "closed" and get("/kv/" .. OPEN) ~= "no" then return end
  if input.new and input.new.availability == "drain" then return end
  return refuse("no maintenance window is open")
end

local function case(name, state, input, expect)
  input.kind, input.key, input.action = "node", "n1", input.action or "put"
  return { name = name, hook = "admit.change", state = state, input = input, expect = expect }
end

local function at(name, now, state, expect)
  return { name = name, hook = "every.1m", input = { now = now }, state = state, expect = expect }
end

local closed = { ["/kv/maintenance/open"] = "no" }
local rename = { old = { name = "w1" }, new = { name = "w2", availability = "active" } }
local SATURDAY = 1767477600 -- 2026-01-03 22:00:00 UTC
local windows = { ["/kv/maintenance/windows"] = "Sat 22:00-04:00", ["/kv/maintenance/open"] = "no" }
local opened = { ["/kv/maintenance/windows"] = "Sat 22:00-04:00", ["/kv/maintenance/open"] = "yes" }

return {
  summary = "Nodes are changed within maintenance windows only (kv: maintenance/windows)",
  order = 20,
  match = { ["admit.change"] = { kinds = { "node" } } },
  hooks = { ["admit.change"] = change, ["every.1m"] = look },
  selftest = {
    case("outside of a window a change is refused", closed, rename, { refuse = "no maintenance window is open" }),
    case("a node can always be drained", closed, { old = {}, new = { availability = "drain" } }, {}),
    case("but not removed", closed, { action = "delete", old = {} }, { refuse = true }),
    case("within one all is allowed", {}, rename, {}),
    case("it can be overridden", { ["/kv/maintenance/open"] = "no", ["/kv/maintenance/override"] = "open" }, rename,
      {}),
    case("both ways", { ["/kv/maintenance/override"] = "closed" }, rename, { refuse = true }),
    at("a window opens", SATURDAY, windows, { commands = {
      { do_ = "kv.put", key = "maintenance/open", value = "yes" },
      { do_ = "event", text = "maintenance window opens" } } }),
    at("a minute before nothing happens", SATURDAY - 60, windows, {}),
    at("a whole day", SATURDAY + 3 * 3600, { ["/kv/maintenance/windows"] = "Sun 00:00-24:00",
      ["/kv/maintenance/open"] = "yes" }, {}),
    at("what is no time closes, and is told", SATURDAY, { ["/kv/maintenance/windows"] = "Sat 22:70-23:00" },
      { commands = { { do_ = "kv.put", key = "maintenance/open", value = "no" },
        { do_ = "event", text = 'maintenance windows cannot be read: "Sat 22:70-23:00"' } } }),
    at("it goes on behind midnight", SATURDAY + 5 * 3600, opened, {}),
    at("and closes", SATURDAY + 6 * 3600, opened, { commands = {
      { do_ = "kv.put", key = "maintenance/open", value = "no" },
      { do_ = "event", text = "maintenance window closes" } } }),
  },
}
