-- Is a history of calls on registers linearizable? The algorithm of Wing and Gong with Lowe's memory of what was tried
-- ("Testing for linearizability", 2017), for each key by itself: linearizability is a local property.
--
-- A call is {key, kind, from, to, ...}, times in any unit of one clock:
--   kind "get"     value: what was read, nil for absent
--   kind "put"     value
--   kind "delete"
--   kind "cas"     expected (nil: absent), value, ok: whether it was carried out
-- A call without `to` has an unknown outcome: it may take effect at any time after `from`, once, or never.
local M = {}

local ABSENT = false

-- The state after the call, or nil if the call cannot have had its outcome in this state.
local function step(state, call)
  local kind = call.kind
  if kind == "get" then
    if state == (call.value or ABSENT) then return state end
  elseif kind == "put" then
    return call.value
  elseif kind == "delete" then
    return ABSENT
  else
    local holds = state == (call.expected or ABSENT)
    if not call.to then return holds and call.value or state end
    if holds == call.ok then return holds and call.value or state end
  end
  return nil
end

-- A doubly linked list of events in the order of time: the begin of every call, the end of each whose outcome is
-- known. Where times are equal the begins come first: then the calls overlap.
local function event_list(calls)
  local events = {}
  for _, call in ipairs(calls) do
    -- Reads that were not answered say nothing.
    if call.to or call.kind ~= "get" then
      local begin = { call = call, time = call.from, is_begin = true, mark = math.random(0) }
      events[#events + 1] = begin
      if call.to then
        local finish = { call = call, time = call.to, is_begin = false }
        begin.finish = finish
        events[#events + 1] = finish
      end
    end
  end
  table.sort(events, function(a, b)
    if a.time ~= b.time then return a.time < b.time end
    return a.is_begin and not b.is_begin
  end)
  local head = {}
  local last = head
  for _, event in ipairs(events) do
    last.next, event.prev = event, last
    last = event
  end
  return head
end

local function unlink(event)
  event.prev.next = event.next
  if event.next then event.next.prev = event.prev end
end

local function relink(event)
  event.prev.next = event
  if event.next then event.next.prev = event end
end

-- Calls of one key. True, or false and a table: {call: the first call that fits nowhere, placed: the calls of the
-- longest order that was found, in that order}.
function M.check_register(calls, initial)
  local head = event_list(calls)
  local state = initial or ABSENT
  local marks = 0 -- the set of placed calls, as the exclusive or of their random marks
  local tried = {}
  local placed = {} -- stack of {event, state before it}
  local best, culprit = -1, nil
  local event = head.next
  while event do
    if event.is_begin then
      local after = step(state, event.call)
      local with = marks ~ event.mark
      local seen = tried[with]
      if after ~= nil and not (seen and seen[after]) then
        if not seen then
          seen = {}
          tried[with] = seen
        end
        seen[after] = true
        placed[#placed + 1] = { event = event, state = state }
        state, marks = after, with
        unlink(event)
        if event.finish then unlink(event.finish) end
        event = head.next
      else
        event = event.next
      end
    else
      -- This call has ended and is not placed: the order so far is wrong.
      if #placed > best then
        best, culprit = #placed, { call = event.call, placed = {} }
        for i, each in ipairs(placed) do culprit.placed[i] = each.event.call end
      end
      local last = table.remove(placed)
      if not last then return false, culprit end
      state, marks = last.state, marks ~ last.event.mark
      if last.event.finish then relink(last.event.finish) end
      relink(last.event)
      event = last.event.next
    end
  end
  return true
end

-- A whole history. True and how many keys and calls it had, or false and a text that shows the violation.
function M.check(history)
  local by_key, keys = {}, {}
  for _, call in ipairs(history) do
    local calls = by_key[call.key]
    if not calls then
      calls = {}
      by_key[call.key] = calls
      keys[#keys + 1] = call.key
    end
    calls[#calls + 1] = call
  end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local ok, culprit = M.check_register(by_key[key])
    if not ok then return false, M.explain(key, culprit) end
  end
  return true, { keys = #keys, calls = #history }
end

function M.show(call)
  local what = call.kind
  if what == "get" then
    what = ("get -> %s"):format(call.value or "absent")
  elseif what == "put" then
    what = "put " .. call.value
  elseif what == "cas" then
    what = ("cas %s to %s -> %s"):format(call.expected or "absent", call.value, call.ok and "done" or "conflict")
  end
  return ("%10.6f .. %s  %-8s %s%s"):format(call.from, call.to and ("%10.6f"):format(call.to) or "   unknown",
    call.client or "", what, call.note and "  [" .. call.note .. "]" or "")
end

function M.explain(key, culprit)
  local lines = { ("key %s is not linearizable. This call fits nowhere:"):format(key), "  " .. M.show(culprit.call),
    "behind the longest order that was found (its last 12):" }
  for i = math.max(1, #culprit.placed - 11), #culprit.placed do
    lines[#lines + 1] = "  " .. M.show(culprit.placed[i])
  end
  return table.concat(lines, "\n")
end

return M
